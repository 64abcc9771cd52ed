"""One ``gateway serve``: a real process, to be asked, stopped and killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import httpx
from anyio.abc import Process

from gateway.demo import lifeline

START_SECONDS = 20.0
_LOOK_SECONDS = 0.01
_LEAVE_SECONDS = 10.0


class GatewayProcess:
    """A gateway at a port of this machine.

    Args:
        command: Runs it, all arguments included.
        environment: All of its variables.
        port: That it will listen on.
        log: Gets what it writes.

    Attributes:
        base_url: Without ``/v1``.
        exit_code: Of its last process, 0 if that was killed; None if it did not leave
            when asked.
        is_running: It has been started, and has not ended as far as is known.
        kills: How many of its processes were killed.
    """

    _process: Process

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        port: int,
        log: Path,
    ) -> None:
        self._command = tuple(command)
        self._environment = dict(environment)
        self._log = log
        self.address = ("127.0.0.1", port)
        self.base_url = f"http://127.0.0.1:{port}"
        self.exit_code: int | None = None
        self.kills = 0
        self.is_running = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def rss_bytes(self) -> int:
        """Its memory (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text("ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    @property
    def log(self) -> str:
        """All it has written, over all of its processes."""
        return self._log.read_text()

    @property
    def exceptions_logged(self) -> str:
        """The log from its first traceback on."""
        _, traceback, rest = self.log.partition("Traceback")
        return traceback + rest

    async def start(self) -> None:
        """Start it, or start it again."""
        self.exit_code = None
        with self._log.open("ab") as log:
            self._process = await anyio.open_process(
                (*dying_with_this_process(), *self._command),
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.is_running = True

    async def answers(
        self,
        path: str,
        client: httpx.AsyncClient,
        within_seconds: float = START_SECONDS,
    ) -> None:
        """Wait until a path is answered with success.

        Raises:
            AssertionError: It is not, in time.
        """
        with anyio.move_on_after(within_seconds):
            while self._process.returncode is None:
                if await _succeeds(client, path):
                    return
                await anyio.sleep(_LOOK_SECONDS)
        message = f"{path} is not answered: {self.log[-2000:]}"
        raise AssertionError(message)

    async def stop(self) -> None:
        """Have it leave in order, however long it drains; it may be gone."""
        if not self.is_running:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()
        with anyio.move_on_after(_LEAVE_SECONDS, shield=True):
            self.exit_code = await self._end()
            return
        await self.kill()
        self.exit_code = None

    async def kill(self) -> None:
        """``kill -9``."""
        self._process.kill()
        self.kills += 1
        self.exit_code = 0
        with anyio.CancelScope(shield=True):
            await self._end()

    def hang_up(self) -> None:
        """Have it read its keys again."""
        self.signal(signal.SIGHUP)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    async def ended(self) -> int:
        """Wait until it has left; its code is the caller's to judge."""
        code = await self._end()
        self.exit_code = 0
        return code

    async def _end(self) -> int:
        code = await self._process.wait()
        await self._process.aclose()  # its watchdog waits for the end of the pipe
        self.is_running = False
        return code


def dying_with_this_process() -> tuple[str, ...]:
    """What to put before a command whose standard input is a pipe of ours."""
    python = (sys.executable, "-I", "-S", lifeline.__file__)
    return (*python, "watchdog", str(os.getpid()))


async def _succeeds(client: httpx.AsyncClient, path: str) -> bool:
    try:
        return (await client.get(path)).is_success
    except httpx.TransportError:
        return False
