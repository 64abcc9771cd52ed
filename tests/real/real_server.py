"""A real server, started for a test from the operator's command."""

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import override

import anyio
import httpx
from anyio.from_thread import start_blocking_portal

from tests.integration.fleet import free_port
from tests.integration.gateway_process import GatewayProcess

READY_SECONDS = 400.0
"""vLLM imports for a minute, and longer where others work."""


class RealServer(GatewayProcess):
    """One process with its children; ended, all of them are.

    Args:
        command: Starts it; ``{port}`` in it is replaced.
        flags: More of its arguments.
        port: Where it will listen.
        log: Gets what it writes.
    """

    def __init__(
        self, command: str, flags: tuple[str, ...], port: int, log: Path
    ) -> None:
        program, *arguments = shlex.split(command.replace("{port}", str(port)))
        found = shutil.which(program)
        assert found is not None, f"no such program: {program}"
        environment = dict(os.environ)  # noqa: TID251 - the operator's command needs it
        super().__init__((found, *arguments, *flags), environment, port, log)

    @property
    def url(self) -> str:
        """For an OpenAI client."""
        return f"{self.base_url}/v1"

    async def ready(self) -> None:
        """Wait until it can be asked."""
        async with httpx.AsyncClient(base_url=self.base_url, trust_env=False) as client:
            await self.answers("/health", client, READY_SECONDS)

    @override
    async def stop(self) -> None:
        if self._process.returncode is not None:
            await self.ended()
        await super().stop()
        with suppress(ProcessLookupError):  # its session is its own
            os.killpg(self.pid, signal.SIGKILL)

    def child(self, name: str) -> int:
        """The id of the process below it that has this in its name."""
        rows = subprocess.check_output(("ps", "-eo", "sess=,pid=,args="), text=True)
        found = [row.split(maxsplit=2) for row in rows.splitlines() if name in row]
        (pid,) = [int(pid) for session, pid, _ in found if int(session) == self.pid]
        return pid


@asynccontextmanager
async def starting(
    command: str, *flags: str, port: int = 0
) -> AsyncIterator[RealServer]:
    """The server, ready, for this event loop; at a free port unless one is given."""
    async with anyio.TemporaryDirectory(prefix="real-") as directory:
        log = Path(directory) / "server.log"
        server = RealServer(command, flags, port or free_port(), log)
        await server.start()
        try:
            await server.ready()
            yield server
        finally:
            with anyio.CancelScope(shield=True):
                await server.stop()


@contextmanager
def started(command: str, *flags: str) -> Iterator[RealServer]:
    """The same, for any thread."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(starting(command, *flags)) as server,
    ):
        yield server
