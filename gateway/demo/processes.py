"""Child processes that do not outlive this one, however this one ends."""

import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, cast

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from gateway.demo import lifeline

if TYPE_CHECKING:
    from anyio.abc import ByteReceiveStream

_POLL_SECONDS: Final = 0.01
_LINE_BYTES: Final = 4096


class NotReady(Exception):
    """A child process ended, or did not come up in time."""


class Child:
    """A process that dies with this one, in a session of its own.

    Ctrl-C at a terminal does not reach it: this object ends it. Its standard error is
    ours; its standard output is for ``read_line`` and must stay short.

    Args:
        command: Absolute path of a program, and its arguments.
        grace_seconds: From SIGTERM to SIGKILL.
    """

    def __init__(self, command: Sequence[str], *, grace_seconds: float = 3.0) -> None:
        self._command = tuple(command)
        self._grace_seconds = grace_seconds

    @property
    def pid(self) -> int:
        """The program's process id, once started."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, or minus the signal; None while it runs."""
        return self._process.returncode

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()  # noqa: ASYNC102 - bounded inside

    async def start(self) -> None:
        """Start it."""
        tied = (_tie(), str(os.getpid()), *self._command)
        self._process = await anyio.open_process(
            (sys.executable, "-I", "-S", lifeline.__file__, *tied),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
            start_new_session=True,
        )

    async def stop(self) -> None:
        """End it by SIGTERM, or by SIGKILL if it does not listen."""
        with anyio.move_on_after(self._grace_seconds, shield=True):
            if self._process.returncode is None:
                self._process.terminate()
            await self._process.wait()
        with anyio.move_on_after(self._grace_seconds, shield=True):
            if self._process.returncode is None:
                self._process.kill()
            await self._process.aclose()

    async def read_line(self, within_seconds: float) -> str:
        """The first line of its standard output.

        Raises:
            NotReady: It did not come in time, or the output ended.
        """
        stdout = cast("ByteReceiveStream", self._process.stdout)  # a pipe, by start()
        output = BufferedByteReceiveStream(stdout)
        with anyio.move_on_after(within_seconds):
            try:
                line = await output.receive_until(b"\n", _LINE_BYTES)
                return line.decode(errors="replace")
            except anyio.IncompleteRead:
                await self._process.wait()  # for its exit code
            except anyio.DelimiterNotFound:
                pass
        raise NotReady(self._failure())

    async def ready(
        self, answers: Callable[[], Awaitable[bool]], within_seconds: float
    ) -> None:
        """Wait until ``answers`` says so; it is asked again and again.

        Raises:
            NotReady: It did not in time, or the process ended.
        """
        with anyio.move_on_after(within_seconds):
            while self._process.returncode is None:
                if await answers():
                    return
                await anyio.sleep(_POLL_SECONDS)
        raise NotReady(self._failure())

    def _failure(self) -> str:
        name = Path(self._command[0]).name
        code = self._process.returncode
        return f"{name} " + ("is not ready" if code is None else f"exited with {code}")


def _tie() -> str:
    """The kernel's way where it is exact; see ``lifeline``."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    return "kernel" if sys.platform == "linux" and in_main_thread else "watchdog"
