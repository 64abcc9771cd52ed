"""Very many clients at the same moment: each is served or told when to come back.

Some keys have a limit on what they may have at a time, and the provider has one too, so
there is a way to be refused for everybody's reason.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

import anyio
import pytest

from gateway.auth.principal import Limits
from tests.integration.baseline import at_rest, cpu_seconds, held, left_over
from tests.integration.fleet import Fleet, Key, Plan, Terms
from tests.integration.raw_client import PROMPT_TOKENS, RawClient

pytestmark = pytest.mark.anyio

HERD = 300
GREAT_HERD = 2000
TOKENS = 20
"""Of each answer, at ten a second: all are there before the first has left."""
REFUSED = {"concurrency_exceeded", "gateway_overloaded"}
LATE = REFUSED | {"quota_store_unavailable"}
"""So many calls at once, from one busy process, the store may answer too late."""
QUIET_SECONDS = 5.0
MOST_BYTES_EACH = 160 * 1024


def limited(herd: int) -> Terms:
    """A quarter of a herd share such a key, and half of them may use it at a time."""
    return Terms(Limits(concurrency=herd // 8))


@pytest.fixture
def herd(request: pytest.FixtureRequest) -> int:
    amount = request.param
    assert isinstance(amount, int)
    return amount


@pytest.fixture
async def fleet(herd: int) -> AsyncIterator[Fleet]:
    plan = Plan(
        models={"brief": f"sim-r10-t{TOKENS}-f0"},
        terms=(limited(herd),),
        max_concurrency=herd * 3 // 4,
    )
    async with Fleet(plan) as fleet:
        yield fleet


@dataclass
class Visit:
    """What became of one client."""

    client: RawClient
    seconds: float = 0.0

    async def make(self) -> None:
        began_at = anyio.current_time()
        async with self.client as client:
            await client.ask("brief")
            await client.read_to_end()
        self.seconds = anyio.current_time() - began_at

    @property
    def told(self) -> str:
        """``served``, or the code of the refusal, if it is one as it should be."""
        client = self.client
        assert client.complete
        if client.status == 200:
            assert client.tokens == TOKENS
            assert client.body.endswith(b"data: [DONE]\n\n")
            return "served"
        assert client.status in {429, 503}
        assert {b"retry-after", b"retry-after-ms"} <= client.headers.keys()
        return str(json.loads(client.body)["error"]["code"])


@pytest.mark.parametrize(
    "herd",
    [
        HERD,
        pytest.param(GREAT_HERD, marks=[pytest.mark.soak, pytest.mark.timeout(300)]),
    ],
    indirect=True,
)
async def test_each_of_a_herd_is_served_or_told_to_come_back(
    fleet: Fleet, herd: int
) -> None:
    free, narrow = fleet.new_key(), fleet.new_key(limited(herd))
    await Visit(RawClient(fleet, free, uuid4().hex)).make()
    paid = await fleet.used(free)
    before = await at_rest(lambda: held(fleet))
    rss, cpu = fleet.rss_bytes, cpu_of(fleet)
    visits = [visit(fleet, narrow if n % 4 == 0 else free) for n in range(herd)]
    began_at = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for one in visits:
            tasks.start_soon(one.make)
    seconds, grown = anyio.current_time() - began_at, fleet.rss_bytes - rss
    told = Counter(one.told for one in visits)
    refused = [one.seconds for one in visits if one.told != "served"]
    print(
        f"{herd} clients: {dict(told)} in {seconds:.1f} s, refusals in at most "
        f"{max(refused):.2f} s, the gateway's CPU {cpu_of(fleet) - cpu:.1f} s, "
        f"{grown / herd / 1024:.0f} KiB each"
    )
    assert told.keys() <= {"served", *(REFUSED if herd == HERD else LATE)}
    assert told["served"] >= (herd * 3 // 4 if herd == HERD else 1)
    assert grown < MOST_BYTES_EACH * herd
    assert await left_over(lambda: held(fleet), before, QUIET_SECONDS) == {}
    used = await fleet.used(free) - paid + await fleet.used(narrow)
    assert used == told["served"] * (PROMPT_TOKENS + TOKENS)


def visit(fleet: Fleet, key: Key) -> Visit:
    return Visit(RawClient(fleet, key, uuid4().hex))


def cpu_of(fleet: Fleet) -> float:
    return cpu_seconds(fleet.gateways[0])
