"""A client that reads hardly anything: while it is seen to read it is not cut.

What can be seen is what TCP says. To a peer with the smallest buffer that is 576 bytes
at a time, so with the default ``write_stall_seconds`` of 20 a reader of 29 bytes a
second has all the time there is. One byte a second is no progress that any sender could
tell from none, and ends as that does.
"""

from collections.abc import AsyncIterator
from uuid import uuid4

import anyio
import pytest

from gateway.demo.attempts import End
from tests.integration.baseline import at_rest, held, left_over
from tests.integration.fleet import Fleet, Plan, eventually
from tests.integration.raw_client import PROMPT_TOKENS, RawClient
from tests.integration.slow_reader import WINDOW_STEP_BYTES, SlowReader

pytestmark = pytest.mark.anyio

STALL_SECONDS = 0.6
STEADY = 4 * WINDOW_STEP_BYTES / STALL_SECONDS
"""Bytes a second of a reader whose progress is seen in time."""
READ_SECONDS = 4 * STALL_SECONDS
QUIET_SECONDS = 4.0
CAP = 1_000_000
MOST_BYTES_ON_THE_WAY = 16 * 1024 * 1024
MOST_BYTES_FOR_IT = 1024 * 1024


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    plan = Plan(
        models={"flood": f"sim-r0-t{CAP}-f0"},
        streaming={"write_stall_seconds": STALL_SECONDS},
    )
    async with Fleet(plan) as fleet:
        async with RawClient(fleet, fleet.new_key(), uuid4().hex) as client:
            await client.ask("flood", max_tokens=20)  # whatever is loaded once
            await client.read_to_end()
        await eventually(lambda: held(fleet), lambda now: not now["reserved_tokens"])
        yield fleet


async def test_slow_reader_holds_its_provider_back_and_is_not_cut(fleet: Fleet) -> None:
    key = fleet.new_key()
    before = await at_rest(lambda: held(fleet))
    rss = fleet.rss_bytes
    async with SlowReader(fleet, key, uuid4().hex) as reader:
        await reader.ask("flood", max_tokens=CAP)
        assert await reader.read_slowly(STEADY, READ_SECONDS)
        attempt = await fleet.attempt(reader.request_id)
        written, grown = attempt.bytes_written, fleet.rss_bytes - rss
        assert await reader.read_slowly(STEADY, STALL_SECONDS)
        assert attempt.end is None
    print(f"{written} bytes were sent, {grown / 1024:.0f} KiB of memory")
    assert attempt.bytes_written - written < MOST_BYTES_ON_THE_WAY / 10
    assert written < MOST_BYTES_ON_THE_WAY
    assert grown < MOST_BYTES_FOR_IT
    assert PROMPT_TOKENS < await fleet.used(key) <= PROMPT_TOKENS + attempt.tokens
    assert attempt.end is End.CLIENT_CLOSED
    assert await fleet.outcomes("flood") == {"completed": 1, "client_disconnect": 1}
    assert await left_over(lambda: held(fleet), before, QUIET_SECONDS) == {}


async def test_reader_of_a_byte_a_second_is_cut_as_one_that_has_stalled(
    fleet: Fleet,
) -> None:
    key = fleet.new_key()
    before = await at_rest(lambda: held(fleet))
    async with SlowReader(fleet, key, uuid4().hex) as reader:
        await reader.ask("flood", max_tokens=CAP)
        with anyio.fail_after(10 * STALL_SECONDS):
            while await fleet.outcomes("flood") == {"completed": 1}:
                await reader.read_slowly(1, seconds=1)
        assert await fleet.outcomes("flood") == {"completed": 1, "client_stalled": 1}
    attempt = await fleet.attempt(reader.request_id)
    assert PROMPT_TOKENS < await fleet.used(key) <= PROMPT_TOKENS + attempt.tokens
    assert await left_over(lambda: held(fleet), before, QUIET_SECONDS) == {}
