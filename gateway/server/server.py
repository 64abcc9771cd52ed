"""The server: uvicorn, with signals and the drain in our own hands.

uvicorn's graceful timeout cancels tasks and closes the lifespan before they have
cleaned up, so it is not used::

    SIGTERM, SIGINT ─► draining: new exchanges get 503, live ones go on
                            │ none left, or drain_seconds over
                            ▼
                       the rest ends with an error frame and is settled
                            │ none left, or END_SECONDS over
                            ▼
                       what has been written may still leave for FLUSH_SECONDS;
                       uvicorn shuts down; exit 0
    a second signal  ─► exit 1 at once; the leases expire by themselves

SIGHUP has the keys document read again. With several workers: ``workers``.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from time import monotonic
from types import FrameType
from typing import override

import uvicorn

from gateway.app import END_SECONDS, Application, from_environment
from gateway.drain import Drain, DrainStep
from gateway.errors import Draining
from gateway.exchange.capacity import (
    connections_within,
    file_limit,
    raise_file_limit,
)
from gateway.server.protocol import Connection
from gateway.server.supervisor import ECHO_SECONDS
from gateway.settings.schema import Settings
from gateway.telemetry.logs import logging_config

SEND_BUFFER_BYTES = 65_536
"""Of each client's socket; the kernel doubles it. Bounds what a stuck reader holds."""
BACKLOG = 2048
FLUSH_SECONDS = 1.0
"""How long a leaving process waits for clients that do not read."""

_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """A uvicorn server that drains before it shuts down."""

    def __init__(
        self,
        config: uvicorn.Config,
        application: Application,
        on_started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._exchanges = application.exchanges
        self._drain_seconds = application.drain_seconds
        self._drain: Drain | None = None
        self._signalled_at = 0.0

    @property
    def is_draining(self) -> bool:
        """Whether it has been asked to leave."""
        return self._drain is not None

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the application, then listen."""
        await super().startup(sockets)
        self._on_started()

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal exits at once."""
        now = monotonic()
        if self._drain is not None:
            if now - self._signalled_at < ECHO_SECONDS:
                return
            _log.warning("second signal: exit at once, leases are left to expire")
            os._exit(1)
        _log.info("draining for at most %g s", self._drain_seconds)
        self._exchanges.draining = True
        self._signalled_at = now
        self._drain = Drain(self._drain_seconds, END_SECONDS, now)

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close what is idle, and soon what is left: uvicorn would wait for it."""
        loop = asyncio.get_running_loop()
        cut = loop.call_later(FLUSH_SECONDS, self._cut)
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()

    def _cut(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @override
    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; true ends the server."""
        if self._drain is None:
            return await super().on_tick(counter)
        match self._drain.step(self._exchanges.live, monotonic()):
            case DrainStep.WAIT:
                return False
            case DrainStep.END:
                self._exchanges.end_all(Draining())
                return False
            case DrainStep.GO:
                ended = ", ".join(
                    f"{amount} {outcome}"
                    for outcome, amount in self._exchanges.ended.items()
                )
                _log.info("no exchange is left; since the start: %s", ended or "none")
                return True


def serve(
    settings: Settings,
    *,
    host: str | None = None,
    port: int | None = None,
    log_level: str = "info",
) -> None:
    """Serve until a signal.

    Args:
        settings: The configuration.
        host: Instead of the configuration's.
        port: Instead of the configuration's; 0 takes a free one.
        log_level: Of uvicorn and of the gateway.

    Raises:
        SettingsError: A variable or file that the configuration names is missing.
        OSError: The address cannot be listened on.
    """
    raise_file_limit()
    application = Application(settings, *from_environment(settings))
    with listen(*address(settings, host, port)) as listener:
        server = make_server(application, log_level, partial(take_hangups, application))
        server.run(sockets=[listener])


def address(settings: Settings, host: str | None, port: int | None) -> tuple[str, int]:
    """Where to listen: as the configuration says, where nothing else is given."""
    return (
        host or settings.server.host,
        settings.server.port if port is None else port,
    )


def take_hangups(application: Application) -> None:
    """From now on SIGHUP has the keys document read again."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, application.reload_keys)


def make_server(
    application: Application,
    log_level: str,
    on_started: Callable[[], None] = lambda: None,
    kind: Callable[..., Server] = Server,
) -> Server:
    """A server for the application; ``on_started`` is called when it answers."""
    config = uvicorn.Config(
        application.asgi,
        http=partial(Connection, connections_within(file_limit())),  # type: ignore[arg-type] # a factory is as good as a class
        ws="none",
        loop="uvloop",
        lifespan="on",
        log_config=logging_config(log_level, tells_process=kind is not Server),
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
    )
    return kind(config, application, on_started)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, with send buffers that its connections inherit."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
    return listener
