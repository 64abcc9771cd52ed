"""``gateway serve`` on several cores: workers that share one listening socket.

The supervisor listens, its workers inherit the socket: whoever has time accepts, and
what waits to be accepted outlives any of them (ADR 18).
"""

import asyncio
import logging
import logging.config
import signal
import socket
import sys
from functools import partial
from types import FrameType
from typing import Any, override

import anyio

from gateway.app import Application, from_environment
from gateway.auth.keyring import Keyring
from gateway.exchange.capacity import raise_file_limit
from gateway.server.fair_accept import Shares, accept_fairly
from gateway.server.server import Server, address, listen, make_server, take_hangups
from gateway.server.supervisor import Supervisor, Work
from gateway.settings import DocumentError
from gateway.settings.schema import Settings
from gateway.telemetry.board import Board
from gateway.telemetry.logs import logging_config
from gateway.telemetry.metrics import OF_WORKERS

_log = logging.getLogger(__name__)


class Worker(Server):
    """A server that shares its listening socket.

    Its supervisor decides when draining has been enough: a signal to the whole group
    comes twice, from its sender and from the supervisor.

    Args:
        number: Among the workers.
        shares: Of all of them.
        listener: Where they accept.
        given: What every server is given.
    """

    def __init__(
        self, number: int, shares: Shares, listener: socket.socket, *given: Any
    ) -> None:
        super().__init__(*given)
        self._number = number
        self._shares = shares
        self._listener = listener

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, once."""
        if not self.is_draining:
            super().handle_exit(sig, frame)

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the application; what comes is accepted in the main loop."""
        await super().startup([])

    @override
    async def main_loop(self) -> None:
        async with anyio.create_task_group() as tasks:
            is_ahead = partial(self._shares.is_ahead, self._number)
            tasks.start_soon(accept_fairly, self._listener, self._take, is_ahead)
            await super().main_loop()
            tasks.cancel_scope.cancel()

    @override
    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; true ends the server."""
        self._tell()
        return await super().on_tick(counter)

    async def _take(self, connection: socket.socket) -> None:
        """Serve this connection, as uvicorn would had it accepted it."""
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(
            lambda: self.config.http_protocol_class(  # type: ignore[call-arg] # as uvicorn calls it
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
                _loop=loop,
            ),
            connection,
        )
        self._tell()

    def _tell(self) -> None:
        self._shares.tell(self._number, len(self.server_state.connections))


def serve(
    settings: Settings,
    workers: int,
    *,
    host: str | None = None,
    port: int | None = None,
    log_level: str = "info",
) -> int:
    """Serve with this many processes until a signal; returns the exit code.

    Raises:
        SettingsError: A variable or file that the configuration names is missing.
        OSError: An address cannot be listened on.
    """
    raise_file_limit()
    from_environment(settings)  # its mistakes are told once, before there are workers
    logging.config.dictConfig(logging_config(log_level, tells_process=True))
    if (metrics_port := settings.telemetry.metrics_port) is not None:
        listen(settings.server.host, metrics_port).close()  # taken: told here and now
    with listen(*address(settings, host, port)) as listener:
        _log.info("%d workers listen on %s", workers, listener.getsockname())
        work = _work(settings, workers, listener, log_level)
        return Supervisor(work, workers).run()


def _work(
    settings: Settings, workers: int, listener: socket.socket, log_level: str
) -> Work:
    board, shares = Board(workers, OF_WORKERS), Shares(workers)

    def run(number: int) -> None:
        given = _environment(settings)
        application = Application(settings, *given, board.seat(number))
        on_started = partial(_take_hangups, application)
        kind = partial(Worker, number, shares, listener)
        make_server(application, log_level, on_started, kind).run([listener])

    def ended(number: int) -> None:
        shares.leave(number)
        board.retire(number)

    return Work(
        run=run,
        is_ready=lambda number, pid: board.reporter(number) == pid,
        ended=ended,
        leave=listener.close,
    )


def _environment(settings: Settings) -> tuple[str, Keyring]:
    """As it is by now, for a worker that may be started after a change."""
    try:
        return from_environment(settings)
    except DocumentError as error:
        _log.error("a worker cannot start: %s", "; ".join(error.mistakes))
        sys.exit(1)


def _take_hangups(application: Application) -> None:
    """Take them, and what came since the worker was started."""
    take_hangups(application)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
