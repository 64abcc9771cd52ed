"""``gateway demo``: one command, and tokens stream."""

import json
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import batched
from pathlib import Path

import anyio
import httpx
import pytest
from openai import AsyncOpenAI

from tests.integration.fleet import GATEWAY, eventually, free_port
from tests.integration.raw_client import PROMPT_TOKENS, QUESTION, simulated_text

pytestmark = pytest.mark.anyio

TOKENS = 40
STOP_SECONDS = 5.0
BANNER = re.compile(
    r"base URL  (?P<base_url>.+)\n"
    r"  key       (?P<key>.+)\n"
    r"  models    chat-small, chat-fast\n"
    r"\nStream an answer:\n\n  (?P<ask>curl .+)\n"
    r"\nWhat it cost:\n\n  (?P<quota>curl .+)\n"
)


@dataclass(frozen=True)
class Demo:
    """A running demo, and what its banner says."""

    process: subprocess.Popen[str]
    said: Mapping[str, str]

    @property
    def base_url(self) -> str:
        return self.said["base_url"]

    def client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.base_url, api_key=self.said["key"])

    async def used(self) -> int:
        """Tokens charged, once nothing is held any more."""

        async def day() -> dict[str, int]:
            async with httpx.AsyncClient(base_url=self.base_url) as client:
                headers = {"x-api-key": self.said["key"]}
                quota = (await client.get("/quota", headers=headers)).json()
                return dict(quota["windows"][0])

        settled = await eventually(day, lambda day: day["reserved"] == 0)
        assert settled["reserved"] == 0
        return settled["used"]


@contextmanager
def running_demo() -> Iterator[Demo]:
    command = [str(GATEWAY), "demo", "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            banner = ""
            while "Ctrl-C" not in banner:
                line = process.stdout.readline()
                assert line, "the demo ended before it was there"
                banner += line
            said = BANNER.search(banner)
            assert said is not None
            yield Demo(process, said.groupdict())
        finally:
            process.kill()


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with running_demo() as demo:
        yield demo


@dataclass
class Streamed:
    """What a stream said, and the usage in it."""

    text: str = ""
    usages: int = 0
    used: int = 0


async def stream(client: AsyncOpenAI, *, include_usage: bool | None) -> Streamed:
    streamed = Streamed()
    options = {} if include_usage is None else {"include_usage": include_usage}
    async with await client.chat.completions.create(
        model="chat-fast",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=TOKENS,
        stream=True,
        extra_body={"stream_options": options} if options else None,
    ) as chunks:
        async for chunk in chunks:
            streamed.text += "".join(
                choice.delta.content or "" for choice in chunk.choices
            )
            if chunk.usage is not None:
                assert chunk.choices == []
                streamed.usages += 1
                streamed.used = chunk.usage.total_tokens
    return streamed


async def test_demo_streams_what_the_provider_says_and_charges_its_usage(
    demo: Demo,
) -> None:
    before = await demo.used()
    async with demo.client() as client:
        streamed = await stream(client, include_usage=True)
    assert streamed.text == simulated_text(TOKENS)
    assert (streamed.usages, streamed.used) == (1, PROMPT_TOKENS + TOKENS)
    assert await demo.used() - before == streamed.used


@pytest.mark.parametrize("include_usage", [None, False])
async def test_demo_shows_no_usage_when_it_was_not_asked_for(
    demo: Demo, include_usage: bool | None
) -> None:
    before = await demo.used()
    async with demo.client() as client:
        streamed = await stream(client, include_usage=include_usage)
    assert (streamed.text, streamed.usages) == (simulated_text(TOKENS), 0)
    assert await demo.used() - before == PROMPT_TOKENS + TOKENS


async def test_lines_of_the_banner_work_when_they_are_pasted(demo: Demo) -> None:
    paste = in_shell if shutil.which("curl") else by_hand
    assert (await paste(demo.said["ask"])).endswith("\n\ndata: [DONE]\n\n")
    assert json.loads(await paste(demo.said["quota"]))["key"] == "demo"


async def in_shell(line: str) -> str:
    return (await anyio.run_process(line)).stdout.decode()


async def by_hand(line: str) -> str:
    """What curl would do."""
    words = iter(shlex.split(line.removeprefix("curl").replace(" -N ", " ")))
    url, options = next(words), dict(batched(words, 2, strict=True))
    headers = dict([options["-H"].split(": ")])
    async with httpx.AsyncClient(headers=headers) as client:
        method = "POST" if "-d" in options else "GET"
        return (await client.request(method, url, content=options.get("-d"))).text


async def test_demo_says_what_it_served_and_takes_all_with_it_when_interrupted() -> (
    None
):
    with running_demo() as demo:
        async with demo.client() as client:
            await stream(client, include_usage=False)
        await demo.used()
        family = descendants(demo.process.pid)
        demo.process.send_signal(signal.SIGINT)
        said, _ = await anyio.to_thread.run_sync(demo.process.communicate)
        assert demo.process.returncode == 0
    charged = PROMPT_TOKENS + TOKENS
    assert said == f"\nServed 1 exchanges (1 completed), {charged} tokens charged.\n"
    assert len(family) >= 2
    assert await alive(family) == []


async def test_nothing_survives_when_the_demo_is_killed() -> None:
    with running_demo() as demo:
        family = descendants(demo.process.pid)
        demo.process.kill()
        await anyio.to_thread.run_sync(demo.process.wait)
    assert len(family) >= 2
    survivors = await eventually(
        lambda: alive(family), lambda left: not left, STOP_SECONDS
    )
    assert survivors == []


def test_demo_names_the_port_when_it_is_taken(demo: Demo) -> None:
    port = str(httpx.URL(demo.base_url).port)
    ran = subprocess.run(
        [GATEWAY, "demo", "--port", port], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert port in ran.stderr
    assert "Traceback" not in ran.stderr


def descendants(pid: int) -> list[int]:
    """Processes started by a process, and by those (Linux)."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return children + [one for child in children for one in descendants(child)]


async def alive(pids: list[int]) -> list[int]:
    """Those of the processes that still run; one that nobody has reaped does not."""
    await anyio.lowlevel.checkpoint()
    return [pid for pid in pids if is_running(pid)]


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
