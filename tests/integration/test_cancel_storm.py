"""Clients that leave at any moment, many at a time: afterwards all is as it was."""

from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random
from uuid import uuid4

import anyio
import pytest

from tests.integration.baseline import at_rest, held, left_over
from tests.integration.fleet import Fleet, Key, Plan
from tests.integration.raw_client import Leave, RawClient

pytestmark = pytest.mark.anyio

CLIENTS = 200
SECONDS = 4.0
SOAK_SECONDS = 60.0
LONGEST_SECONDS = 1.5
QUIET_SECONDS = 10.0
CAP = 100
MODELS = {
    "silent": "sim-xhang-before-headers",
    "wordless": "sim-xhang-before-first",
    "steady": "sim-r50-t100-f20",
    "flood": "sim-r0-t100-f0",
    "lost": "sim-r0-f0-xreset-mid-stream",
    "late": "sim-r0-t20-f100",
}


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    routing = {"breaker": {"failures": 100_000}}
    async with Fleet(Plan(models=MODELS, extra={"routing": routing})) as fleet:
        yield fleet


async def test_nothing_is_left_when_200_clients_leave_at_random(fleet: Fleet) -> None:
    await storm(fleet, SECONDS)


@pytest.mark.soak
@pytest.mark.timeout(180)
async def test_nothing_is_left_after_a_minute_of_that(fleet: Fleet) -> None:
    await storm(fleet, SOAK_SECONDS)


async def storm(fleet: Fleet, seconds: float) -> None:
    key = fleet.new_key()
    await visit(fleet, key, Random(0))  # whatever is opened once
    before = await at_rest(lambda: held(fleet))
    asked = len(fleet.provider.log)
    seed = Random().randrange(1 << 30)
    print(f"seed {seed}")
    until = anyio.current_time() + seconds
    async with anyio.create_task_group() as tasks:
        for number in range(CLIENTS):
            tasks.start_soon(visit_until, fleet, key, Random(seed + number), until)
    assert await left_over(lambda: held(fleet), before, QUIET_SECONDS) == {}
    sent = [one for one in list(fleet.provider.log)[asked:] if one.end is not None]
    print(f"{len(fleet.provider.log) - asked} requests")
    assert len(sent) == len(fleet.provider.log) - asked > CLIENTS
    assert (await fleet.quota(key))["concurrency"]["in_use"] == 0


async def visit_until(fleet: Fleet, key: Key, random: Random, until: float) -> None:
    while anyio.current_time() < until:
        await visit(fleet, key, random)


async def visit(fleet: Fleet, key: Key, random: Random) -> None:
    """Ask for something, and leave at some moment in some way."""
    async with RawClient(fleet, key, uuid4().hex) as client:
        with anyio.move_on_after(random.uniform(0, LONGEST_SECONDS)):
            model = random.choice(list(MODELS))
            await client.ask(model, stream=random.random() < 0.7, max_tokens=CAP)
            if random.random() < 0.8:
                await client.read_to_end()
            else:
                await anyio.sleep_forever()
        with suppress(anyio.BrokenResourceError):
            await client.leave(random.choice(list(Leave)))
