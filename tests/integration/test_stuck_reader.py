"""A client that does not read: it costs a bounded amount of memory, and nobody else."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from uuid import uuid4

import anyio
import pytest

from gateway.demo.attempts import Attempt, End
from tests.integration.fleet import Fleet, Key, Plan, end_of, eventually, running
from tests.integration.raw_client import PROMPT_TOKENS, RawClient, simulated_text

pytestmark = pytest.mark.anyio

STUCK = 20
WARM_UP = 2
STILL_SECONDS = 0.3
"""A provider that has written nothing for so long is held back."""
ANSWER_TOKENS = 1_000_000
MODELS = {
    "flood": f"sim-r0-t{ANSWER_TOKENS}-f0",
    "steady": "sim-r100-t50-f0",
    "long": "sim-r100-t500-f0-c1",
}
MANY = 1000
MANY_STALL_SECONDS = 40.0
MOST_ADDED_SECONDS = 0.01
MOST_BYTES_FOR_MANY = 300 * 1024 * 1024
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
    fleet: Fleet, key: Key, amount: int, *, at_once: bool = False
) -> AsyncIterator[list[Attempt]]:
    """Clients that read nothing; their providers, all held back."""
    async with AsyncExitStack() as stack:
        clients = [RawClient(fleet, key, uuid4().hex) for _ in range(amount)]
        for client in clients:
            await stack.enter_async_context(client)
            await client.ask("flood", max_tokens=ANSWER_TOKENS)
            if not at_once:
                await fleet.attempt(client.request_id)
        attempts = [await fleet.attempt(client.request_id) for client in clients]
        await held_back(attempts)
        yield attempts


async def held_back(
    attempts: list[Attempt], still_seconds: float = STILL_SECONDS
) -> None:
    """Wait until none of the providers can write any more."""
    written = [-1]
    while written != (now := [one.bytes_written for one in attempts]):
        written = now
        await anyio.sleep(still_seconds)


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
        print(f"{grown / STUCK / 1024:.0f} KiB a stuck reader")
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


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_1000_stuck_readers_are_borne_and_cut() -> None:
    streaming = {"write_stall_seconds": MANY_STALL_SECONDS}
    plan = Plan(models=MODELS, max_concurrency=2 * MANY, streaming=streaming)
    async with Fleet(plan) as fleet:
        key = fleet.new_key()
        alone = await p99_gap(fleet)
        before = fleet.rss_bytes
        async with stuck_readers(fleet, key, MANY, at_once=True) as attempts:
            grown = fleet.rss_bytes - before
            await held_back(attempts, 5 * STILL_SECONDS)  # with so many it takes longer
            beside = await p99_gap(fleet)
            await eventually(
                lambda: fleet.metric("gateway_slow_clients_total"),
                lambda cut: cut.total() == MANY,
                within_seconds=2 * MANY_STALL_SECONDS,
            )
        assert await fleet.outcomes("flood") == {"client_stalled": MANY}
        used = await fleet.used(key)
        print(
            f"{MANY} stuck: {grown / 1e6:.0f} MB, "
            f"p99 gap {1000 * alone:.1f} ms alone, {1000 * beside:.1f} ms beside them"
        )
        assert grown < MOST_BYTES_FOR_MANY
        assert beside < alone + MOST_ADDED_SECONDS
        assert 0 < used - MANY * PROMPT_TOKENS <= sum(one.tokens for one in attempts)
        assert await open_reservations(fleet) == 0


async def p99_gap(fleet: Fleet) -> float:
    """Between two events of a stream that comes at 100 a second, in seconds."""
    async with RawClient(fleet, fleet.new_key(), uuid4().hex) as client:
        await client.ask("long")
        times = []
        while not client.complete:
            await client.read()
            times.append(anyio.current_time())
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    return gaps[len(gaps) * 99 // 100]


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
        assert await end_of(attempt) is End.CLIENT_CLOSED
        assert await fleet.used(key) > PROMPT_TOKENS
        await client.read_to_end()
    assert not client.complete
    assert b'"error"' not in client.body
