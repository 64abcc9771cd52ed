"""More clients than a process may have file descriptors.

The streams it has go on, a client for whom there is no room is told so at once, and the
process does not compute while there is nothing that it could do.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import anyio
import pytest

from tests.integration.baseline import at_rest, cpu_seconds, held, left_over
from tests.integration.fleet import GATEWAY, Fleet, Plan, eventually
from tests.integration.raw_client import RawClient

pytestmark = pytest.mark.anyio

FILES = 256
LIVE = 15
SURPLUS = 150
"""They have no room together, but each for itself can be told so."""
FLOOD = 400
"""They have not even room for that: some connections are closed as they come."""
LATECOMERS = 3
TOKENS = 400
FULL_SECONDS = 1.0
"""Every live stream must have got on in that time."""
MOST_CPU_SECONDS = 0.4
"""In that time; the live streams have a share in it."""
TOLD_SECONDS = 0.1
QUIET_SECONDS = 5.0
SHELL = ("/bin/sh", "-c", f'ulimit -n {FILES} && exec "$0" "$@"', str(GATEWAY))


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    models = {"lasting": f"sim-r20-t{TOKENS}-f0"}
    plan = Plan(models=models, unlimited=LIVE + FLOOD, command=SHELL)
    async with Fleet(plan) as fleet:
        yield fleet


@dataclass
class Visit:
    """One client; ``told_in`` is how long it waited for a status, in seconds."""

    client: RawClient
    told_in: float = 0.0
    is_cut: bool = False

    async def make(self) -> None:
        began_at = anyio.current_time()
        try:
            await self.client.ask("lasting")
            while not self.client.status:
                await self.client.read()
        except (anyio.BrokenResourceError, anyio.EndOfStream):
            self.is_cut = True
        self.told_in = anyio.current_time() - began_at
        await self.client.read_to_end()

    @property
    def told(self) -> str:
        """``served``, ``waits``, ``cut``, or the code of the refusal."""
        if self.client.status == 0:
            return "cut" if self.is_cut else "waits"
        if self.client.status == 200:
            return "served"
        return str(json.loads(self.client.body)["error"]["code"])


@asynccontextmanager
async def visiting(fleet: Fleet, amount: int) -> AsyncIterator[Sequence[Visit]]:
    """So many clients, who have asked and read until the end of the block."""
    async with AsyncExitStack() as stack:
        clients = [
            RawClient(fleet, fleet.new_key(), uuid4().hex) for _ in range(amount)
        ]
        visits = [Visit(await stack.enter_async_context(one)) for one in clients]
        async with anyio.create_task_group() as tasks:
            for visit in visits:
                tasks.start_soon(visit.make)
            yield visits
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize(("surplus", "cut"), [(SURPLUS, 0), (FLOOD, FLOOD)])
async def test_live_streams_go_on_when_there_are_more_clients_than_descriptors(
    fleet: Fleet, surplus: int, cut: int
) -> None:
    gateway = fleet.gateways[0]
    before = await at_rest(lambda: held(fleet))
    async with visiting(fleet, LIVE) as live:
        await eventually(lambda: all_are_served(live), bool, QUIET_SECONDS)
        async with visiting(fleet, surplus) as crowd:
            await anyio.sleep(FULL_SECONDS)
            late = [] if cut else [await latecomer(fleet) for _ in range(LATECOMERS)]
            words, cpu = [words_of(one) for one in live], cpu_seconds(gateway)
            await anyio.sleep(FULL_SECONDS)
            cpu = cpu_seconds(gateway) - cpu
            assert all(map(int.__lt__, words, [words_of(one) for one in live]))
            told = Counter(one.told for one in crowd)
        assert {one.told for one in live} == {"served"}
    quickest = min((one.told_in for one in late), default=0.0)
    print(f"{dict(told)}; CPU {cpu:.2f} s; the next in {1000 * quickest:.0f} ms")
    assert told.keys() <= {"served", "cut", "gateway_overloaded"}
    assert told["cut"] <= cut
    assert told["served"] < surplus
    assert {one.told for one in late} <= {"gateway_overloaded"}
    assert quickest < TOLD_SECONDS
    assert cpu < MOST_CPU_SECONDS
    async with fleet.client() as client:
        await gateway.answers("/healthz", client)
    assert await left_over(lambda: held(fleet), before, QUIET_SECONDS) == {}


async def latecomer(fleet: Fleet) -> Visit:
    """One more client, when there is no room."""
    async with RawClient(fleet, fleet.new_key(), uuid4().hex) as client:
        visit = Visit(client)
        with anyio.move_on_after(FULL_SECONDS):
            await visit.make()
    return visit


async def all_are_served(visits: Sequence[Visit]) -> bool:
    await anyio.lowlevel.checkpoint()
    return all(one.client.status == 200 for one in visits)


def words_of(visit: Visit) -> int:
    return len(visit.client.text.split())
