import signal
import sys

import anyio.lowlevel
import httpx
import pytest

from gateway.demo.processes import Child, NotReady

pytestmark = pytest.mark.anyio

DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""
SIMULATE = """
import anyio
from gateway.demo.scenario import SimulatorSettings
from gateway.demo.simulated import serve_simulated

async def main():
    say = lambda url: print(url, flush=True)
    await serve_simulated(SimulatorSettings(), "127.0.0.1", 0, listening=say)

anyio.run(main)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_child_is_killed_when_it_does_not_listen() -> None:
    async with Child(python(DEAF), grace_seconds=0.1) as child:
        assert await child.read_line(5) == "up"
    assert child.returncode == -signal.SIGKILL


async def test_child_is_ended_when_it_listens() -> None:
    code = "import time; print('up', flush=True); time.sleep(60)"
    async with Child(python(code)) as child:
        assert await child.read_line(5) == "up"
    assert child.returncode == -signal.SIGTERM


async def test_simulated_provider_answers_when_it_is_a_child() -> None:
    async with Child(python(SIMULATE)) as child:
        base_url = await child.read_line(10)
        async with httpx.AsyncClient(base_url=base_url) as client:
            request = {"model": "sim-r0-f0-t3", "prompt": "Hi"}
            answer = await client.post("/completions", json=request)
            assert answer.json()["choices"][0]["text"] == "A river is"


async def test_read_line_has_the_exit_code_when_the_child_has_ended() -> None:
    async with Child(python("raise SystemExit(3)")) as child:
        with pytest.raises(NotReady, match="exited with 3"):
            await child.read_line(5)


async def test_read_line_gives_up_when_the_child_is_silent() -> None:
    async with Child(python("import time; time.sleep(60)")) as child:
        with pytest.raises(NotReady, match="is not ready"):
            await child.read_line(0.05)


async def test_ready_is_asked_until_it_is_true() -> None:
    answers = iter([False, False, True])

    async def answer() -> bool:
        return next(answers)

    async with Child(python("import time; time.sleep(60)")) as child:
        await child.ready(answer, 5)
    assert list(answers) == []


async def test_ready_gives_up_when_the_child_ends_or_never_answers() -> None:
    async def never() -> bool:
        await anyio.lowlevel.checkpoint()
        return False

    async with Child(python("raise SystemExit(4)")) as child:
        with pytest.raises(NotReady, match="exited with 4"):
            await child.ready(never, 5)
    async with Child(python("import time; time.sleep(60)")) as child:
        with pytest.raises(NotReady, match="is not ready"):
            await child.ready(never, 0.05)
