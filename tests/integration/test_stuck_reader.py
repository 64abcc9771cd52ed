"""A client that does not read: it costs a bounded amount of memory, and nobody else."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import anyio
import pytest

from gateway.demo.attempts import Attempt, End
from tests.integration.fleet import Fleet, Key, Plan, eventually, running
from tests.integration.raw_client import PROMPT_TOKENS, RawClient, simulated_text

pytestmark = pytest.mark.anyio

STUCK = 20
WARM_UP = 2
STILL_SECONDS = 0.3
"""A provider that has written nothing for so long is held back."""
ANSWER_TOKENS = 1_000_000
MODELS = {"flood": f"sim-r0-t{ANSWER_TOKENS}-f0", "steady": "sim-r100-t50-f0"}
MOST_BYTES_PER_READER = 256 * 1024
MOST_BYTES_ON_THE_WAY = 16 * 1024 * 1024
"""All sockets together, the provider's own and the client's among them; the answer has
ten times as much."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running(Plan(models=MODELS)) as fleet:
        yield fleet


@pytest.fixture
def impatient_fleet() -> Iterator[Fleet]:
    streaming = {"write_stall_seconds": 0.5}
    with running(Plan(models=MODELS, streaming=streaming)) as fleet:
        yield fleet


@asynccontextmanager
async def stuck_readers(
    fleet: Fleet, key: Key, amount: int
) -> AsyncIterator[list[Attempt]]:
    """Clients that read nothing; their providers, all held back."""
    async with AsyncExitStack() as stack:
        attempts = []
        for _ in range(amount):
            client = RawClient(fleet, key, uuid4().hex)
            await stack.enter_async_context(client)
            await client.ask("flood", max_tokens=ANSWER_TOKENS)
            attempts.append(await fleet.attempt(client.request_id))
        await held_back(attempts)
        yield attempts


async def held_back(attempts: list[Attempt]) -> None:
    """Wait until none of the providers can write any more."""
    written = [-1]
    while written != (now := [one.bytes_written for one in attempts]):
        written = now
        await anyio.sleep(STILL_SECONDS)


async def test_stuck_readers_cost_little_memory_and_hold_their_providers_back(
    fleet: Fleet,
) -> None:
    key = fleet.new_key()
    async with stuck_readers(fleet, key, WARM_UP):
        pass  # whatever is loaded or allocated once
    warm_up = await fleet.used(key)
    before = fleet.rss_bytes
    async with stuck_readers(fleet, key, STUCK) as attempts:
        grown = fleet.rss_bytes - before
        assert grown / STUCK < MOST_BYTES_PER_READER
        for attempt in attempts:
            assert 0 < attempt.bytes_written < MOST_BYTES_ON_THE_WAY
            assert attempt.end is None
        await check_others_go_on(fleet)
    used = await fleet.used(key)
    generated = sum(attempt.tokens for attempt in attempts)
    assert 0 < used - warm_up - STUCK * PROMPT_TOKENS <= generated
    assert {attempt.end for attempt in attempts} == {End.CLIENT_CLOSED}
    assert (fleet.provider.in_flight, await open_reservations(fleet)) == (0, 0)


async def check_others_go_on(fleet: Fleet) -> None:
    """One more stream is served at its own pace: half a second, and much patience."""
    key = fleet.new_key()
    with anyio.fail_after(5.0):
        async with RawClient(fleet, key, uuid4().hex) as client:
            await client.ask("steady")
            await client.read_to_end()
    assert client.text == simulated_text(50)
    assert await fleet.used(key) == PROMPT_TOKENS + 50


async def open_reservations(fleet: Fleet) -> int:
    async with fleet.client() as client:
        text = (await client.get("/metrics")).text
    (line,) = (
        line
        for line in text.splitlines()
        if line.startswith("gateway_reservations_open ")
    )
    return round(float(line.split()[1]))


async def test_stuck_reader_is_cut_when_it_has_stalled_for_too_long(
    impatient_fleet: Fleet,
) -> None:
    fleet = impatient_fleet
    key = fleet.new_key()
    before = await fleet.outcomes("flood")
    async with RawClient(fleet, key, uuid4().hex) as client:
        await client.ask("flood", max_tokens=ANSWER_TOKENS)
        attempt = await fleet.attempt(client.request_id)
        end = await eventually(
            lambda: fleet.outcomes_since("flood", before), bool, within_seconds=5
        )
        assert end == {"client_stalled": 1}
        assert attempt.end is End.CLIENT_CLOSED
        assert await fleet.used(key) > PROMPT_TOKENS
        await client.read_to_end()
    assert not client.complete
    assert b'"error"' not in client.body
