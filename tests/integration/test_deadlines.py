"""Deadlines and heartbeats with small values: never early, at most half a second late.

The connect deadline is in ``test_network``, where the network is.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import anyio
import pytest

from tests.integration.fleet import Fleet, Key, Plan, eventually
from tests.integration.puppet import USAGE, WORD, Puppet, Turn
from tests.integration.raw_client import OUR_PROMPT_TOKENS, RawClient

pytestmark = pytest.mark.anyio

FIRST_BYTE_SECONDS = 0.8
IDLE_SECONDS = 0.9
STALL_SECONDS = 0.8
TOTAL_SECONDS = 2.2
HEARTBEAT_SECONDS = 0.3
TICK_SECONDS = 0.1
LATE_SECONDS = 0.5
BUSY_SECONDS = 0.3
PROMPT_SECONDS = 0.4
"""What counts as at once on a busy machine."""
HEARTBEAT = b": keep-alive\n\n"
DEADLINES = {
    "first_byte_seconds": FIRST_BYTE_SECONDS,
    "idle_seconds": IDLE_SECONDS,
    "write_stall_seconds": STALL_SECONDS,
    "total_seconds": TOTAL_SECONDS,
    "heartbeat_seconds": HEARTBEAT_SECONDS,
}
LARGE = "sim-r0-t300000-f0"
CAP = 300_000


@dataclass
class Scene:
    """One exchange with a puppet; times are monotonic seconds."""

    fleet: Fleet
    key: Key
    client: RawClient
    turn: Turn
    asked_at: float

    async def used(self) -> int:
        return await self.fleet.used(self.key)

    @property
    def error(self) -> str:
        """The code of the last event, or of the whole body."""
        last = bytes(self.client.body).rstrip().rpartition(b"\n\n")[2]
        return str(json.loads(last.removeprefix(b"data: "))["error"]["code"])


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The fleets stand on the loop of all tests."""
    return "asyncio"


@pytest.fixture(scope="module")
async def puppet() -> AsyncIterator[Puppet]:
    async with Puppet() as puppet:
        yield puppet


def plan(puppet: Puppet, **streaming: object) -> Plan:
    return Plan(
        models={"large": LARGE},
        providers={"puppet": puppet.url},
        streaming={**DEADLINES, **streaming},
        extra={"routing": {"breaker": {"failures": 1000}}},
    )


@pytest.fixture(scope="module")
async def fleet(puppet: Puppet) -> AsyncIterator[Fleet]:
    async with Fleet(plan(puppet)) as fleet:
        yield fleet


@pytest.fixture(scope="module")
async def beating(puppet: Puppet) -> AsyncIterator[Fleet]:
    async with Fleet(plan(puppet, heartbeat_before_first_event=True)) as fleet:
        yield fleet


@asynccontextmanager
async def scene(
    fleet: Fleet, puppet: Puppet, **members: object
) -> AsyncIterator[Scene]:
    key = fleet.new_key()
    async with RawClient(fleet, key, uuid4().hex) as client:
        asked_at = anyio.current_time()
        await client.ask("puppet", **members)
        turn = await puppet.turn()
        yield Scene(fleet, key, client, turn, asked_at)
        turn.over.set()


def check_in_time(seconds: float, deadline: float) -> None:
    assert deadline <= seconds + TICK_SECONDS / 10
    assert seconds < deadline + LATE_SECONDS + BUSY_SECONDS


async def nothing(turn: Turn) -> None:
    await anyio.lowlevel.checkpoint()


async def head(turn: Turn) -> None:
    await turn.begin()


async def a_word(turn: Turn) -> None:
    await turn.begin()
    await turn.say(1)


async def a_comment(turn: Turn) -> None:
    await turn.begin()
    await turn.comment()


type Begin = Callable[[Turn], Awaitable[None]]


@pytest.mark.parametrize(
    ("begin", "deadline", "status"),
    [
        (nothing, FIRST_BYTE_SECONDS, 504),
        (head, FIRST_BYTE_SECONDS, 504),
        (a_comment, IDLE_SECONDS, 504),
        (a_word, IDLE_SECONDS, 200),
    ],
)
async def test_silent_provider_is_given_up_in_time(
    fleet: Fleet, puppet: Puppet, begin: Begin, deadline: float, status: int
) -> None:
    async with scene(fleet, puppet) as one:
        await begin(one.turn)
        since = one.asked_at if deadline == FIRST_BYTE_SECONDS else anyio.current_time()
        await one.client.read_to_end()
        check_in_time(anyio.current_time() - since, deadline)
        assert (one.client.status, one.error) == (status, "upstream_timeout")
        assert await one.used() == (OUR_PROMPT_TOKENS + 1 if status == 200 else 0)


async def test_comments_keep_a_stream_alive_but_are_not_relayed(
    fleet: Fleet, puppet: Puppet
) -> None:
    async with scene(fleet, puppet) as one:
        await one.turn.begin()
        while anyio.current_time() < one.asked_at + 1.5 * FIRST_BYTE_SECONDS:
            await one.turn.comment()
            await anyio.sleep(IDLE_SECONDS / 4)
        await one.turn.say(1)
        await one.turn.finish()
        await one.client.read_to_end()
        assert one.client.body.endswith(b"data: [DONE]\n\n")
        assert b": still here" not in one.client.body


@pytest.mark.parametrize("stream", [True, False])
async def test_answer_is_ended_in_time_when_it_takes_too_long(
    fleet: Fleet, puppet: Puppet, stream: bool
) -> None:
    async with (
        scene(fleet, puppet, stream=stream) as one,
        anyio.create_task_group() as tasks,
    ):
        if stream:
            tasks.start_soon(talk, one.turn)
        await one.client.read_to_end()
        seconds = anyio.current_time() - one.asked_at
        tasks.cancel_scope.cancel()
    check_in_time(seconds, TOTAL_SECONDS)
    assert one.client.status == (200 if stream else 504)
    assert one.error == "upstream_timeout"
    words = one.client.body.count(WORD.encode())
    least = OUR_PROMPT_TOKENS + words if stream else 0
    most = OUR_PROMPT_TOKENS + one.turn.said if stream else 0
    assert least <= await one.used() <= most


async def talk(turn: Turn) -> None:
    await turn.begin()
    while True:
        await turn.say(1)
        await anyio.sleep(0.2)


async def test_finished_stream_is_whole_when_silence_follows(
    fleet: Fleet, puppet: Puppet
) -> None:
    async with scene(fleet, puppet, stream_options={"include_usage": True}) as one:
        await a_word(one.turn)
        prompt, completion = USAGE
        usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        finish = {"index": 0, "delta": {}, "finish_reason": "stop"}
        await one.turn.tell({"choices": [finish], "usage": usage})
        finished_at = anyio.current_time()
        await one.client.read_to_end()
        check_in_time(anyio.current_time() - finished_at, IDLE_SECONDS)
        assert b'"finish_reason": "stop"' in one.client.body
        assert b'"usage"' in one.client.body  # it was the last one after all
        assert b'"error"' not in one.client.body
        assert b"[DONE]" not in one.client.body
        assert await one.used() == sum(USAGE)


async def test_end_is_told_at_once_when_the_provider_stays_after_done(
    fleet: Fleet, puppet: Puppet
) -> None:
    async with scene(fleet, puppet) as one:
        await a_word(one.turn)
        await one.turn.send(b"data: [DONE]\n\ndata: {}\n\n")
        done_at = anyio.current_time()
        await one.client.read_to_end()
        assert anyio.current_time() - done_at < PROMPT_SECONDS
        await one.turn.left()
        assert anyio.current_time() - done_at < PROMPT_SECONDS
        assert one.client.body.endswith(b"data: [DONE]\n\n")


async def test_whole_answer_is_cut_in_time_when_nobody_reads_it(fleet: Fleet) -> None:
    key = fleet.new_key()
    before = await fleet.outcomes("large")
    async with RawClient(fleet, key, uuid4().hex) as client:
        await client.ask("large", stream=False, max_tokens=CAP)
        attempt = await fleet.attempt(client.request_id)
        await eventually(lambda: ended(attempt), bool)
        written_at = anyio.current_time()
        outcomes = await eventually(
            lambda: fleet.outcomes_since("large", before), bool, within_seconds=5
        )
        check_in_time(anyio.current_time() - written_at, STALL_SECONDS)
        await client.read_to_end()
    assert outcomes == {"client_stalled": 1}
    assert (client.status, client.complete) == (200, False)
    assert await fleet.used(key) > CAP


async def test_whole_answer_is_not_cut_when_it_is_read_slowly(fleet: Fleet) -> None:
    key = fleet.new_key()
    async with RawClient(fleet, key, uuid4().hex) as client:
        await client.ask("large", stream=False, max_tokens=CAP)
        with anyio.move_on_after(1.5 * STALL_SECONDS):
            while True:
                await client.read()
                await anyio.sleep(0.03)
        await client.read_to_end()
    assert client.complete
    assert await fleet.used(key) > CAP


async def test_heartbeat_comes_after_silence_and_between_events(
    beating: Fleet, puppet: Puppet
) -> None:
    async with scene(beating, puppet) as one:
        await a_word(one.turn)
        for _ in range(5):
            await anyio.sleep(HEARTBEAT_SECONDS / 2)
            await one.turn.comment()  # no byte of it reaches the client
        await one.turn.say(1)
        await one.turn.say(1)
        await one.turn.finish()
        await one.client.read_to_end()
    first, *beats, rest = bytes(one.client.body).split(HEARTBEAT)
    assert first.count(WORD.encode()) == 1
    assert beats
    assert set(beats) == {b""}
    assert rest.count(WORD.encode()) == 2
    assert rest.startswith(b"data: ")
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_heartbeat_may_commit_early_and_failure_is_a_frame_then(
    beating: Fleet, puppet: Puppet
) -> None:
    async with scene(beating, puppet) as one:
        await one.client.read_until(HEARTBEAT)
        seconds = anyio.current_time() - one.asked_at
        check_in_time(seconds, HEARTBEAT_SECONDS)
        await one.turn.begin()
        await one.turn.tell({"error": {"message": "no", "code": 400}})
        await one.turn.send(b"data: [DONE]\n\n")
        await one.client.read_to_end()
        assert (one.client.status, one.error) == (200, "invalid_request")
        assert await one.used() == 0


async def test_nothing_is_sent_before_the_first_event_unless_it_is_wanted(
    fleet: Fleet, puppet: Puppet
) -> None:
    async with scene(fleet, puppet) as one:
        await one.turn.begin()
        with anyio.move_on_after(2 * HEARTBEAT_SECONDS):
            await one.client.read()
        assert one.client.status == 0
        await one.turn.end()
        await one.client.read_to_end()
        assert (one.client.status, one.error) == (502, "upstream_truncated")


async def ended(attempt: object) -> bool:
    await anyio.lowlevel.checkpoint()
    return getattr(attempt, "end", None) is not None
