"""``kill -9`` of a gateway in the middle of its streams: another one settles them.

What is charged was written ahead of the relay, so for every stream::

    relayed ≤ charged ≤ relayed + A      A = max(64, what 0.2 s of the stream bring)
"""

import re
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from uuid import uuid4

import anyio
import pytest

from gateway.admission.reservation import LEAST_ALLOWANCE, PACE_SECONDS
from gateway.demo.text import passage
from tests.integration.fleet import Fleet, Key, Plan, eventually
from tests.integration.raw_client import OUR_PROMPT_TOKENS, RawClient

pytestmark = pytest.mark.anyio

CAP = 20_000
SETTLED_SECONDS = 6.0
"""A lease of 5 s and a sweep."""
LIVED_SECONDS = 2.5
SECOND_LOOK = 1.5
"""Windows that the client measures are wider: it sees bursts the gateway had not."""
RATES = {"slow": 20, "fast": 200, "furious": 1000}
STREAMS = {"slow": 50, "fast": 50, "furious": 1}
_REPORTED = re.compile(rb'"completion_tokens":(\d+)')
_EVENT_BYTES = 2048


class Witness(RawClient):
    """A client that knows at any time how many tokens it has got.

    Attributes:
        key: It pays with.
        model: It has asked for.
        marks: (seconds, tokens), oldest first.
    """

    def __init__(self, fleet: Fleet, key: Key, model: str) -> None:
        super().__init__(fleet, key, uuid4().hex)
        self.key = key
        self.model = model
        self.marks: list[tuple[float, int]] = [(0.0, 0)]

    async def watch(self) -> None:
        """Ask, and read until there is nothing more."""
        usage = {"include_usage": True, "continuous_usage_stats": True}
        await self.ask(self.model, max_tokens=CAP, stream_options=usage)
        while not self.complete:
            try:
                await self.read()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return
            self.marks.append((anyio.current_time(), self._told()))

    def _told(self) -> int:
        whole = self.body[-_EVENT_BYTES:].rpartition(b"\n\n")[0]
        told = _REPORTED.findall(whole)
        return int(told[-1]) if told else 0

    @property
    def relayed(self) -> int:
        """Tokens it has got."""
        return self.marks[-1][1]

    @property
    def allowance(self) -> int:
        """Page 04's A, from what came in the busiest of all moments."""
        most, first = 0, 0
        for last in range(len(self.marks)):
            while self.marks[last][0] - self.marks[first][0] > (
                PACE_SECONDS * SECOND_LOOK
            ):
                first += 1
            before = self.marks[max(first - 1, 0)][1]
            most = max(most, self.marks[last][1] - before)
        return max(LEAST_ALLOWANCE, most)


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    models = {name: f"sim-r{rate}-t{CAP}-f0" for name, rate in RATES.items()}
    async with Fleet(Plan(models=models, gateways=2)) as fleet:
        yield fleet


async def test_another_gateway_settles_all_streams_when_one_is_killed(
    fleet: Fleet,
) -> None:
    witnesses = [
        Witness(fleet, fleet.new_key(), model)
        for model, streams in STREAMS.items()
        for _ in range(streams)
    ]
    async with anyio.create_task_group() as tasks:
        for witness in witnesses:
            tasks.start_soon(watch_until_the_end, witness)
        await eventually(
            lambda: all_have_begun(witnesses), bool, within_seconds=SETTLED_SECONDS
        )
        await anyio.sleep(LIVED_SECONDS)
        await fleet.gateways[0].kill()
        killed_at = anyio.current_time()
    expired = await eventually(
        lambda: expired_by_the_other(fleet),
        lambda expired: expired >= len(witnesses),
        within_seconds=SETTLED_SECONDS + 5,
    )
    seconds = anyio.current_time() - killed_at
    assert expired == len(witnesses)
    ahead = dict.fromkeys(STREAMS, 0)
    for witness in witnesses:
        seen = await charged_ahead(fleet, witness)
        ahead[witness.model] = max(ahead[witness.model], seen)
    print(f"{len(witnesses)} settled after {seconds:.2f} s, at most ahead: {ahead}")
    assert seconds <= SETTLED_SECONDS


async def watch_until_the_end(witness: Witness) -> None:
    async with witness:
        await witness.watch()


async def all_have_begun(witnesses: Sequence[Witness]) -> bool:
    await anyio.lowlevel.checkpoint()
    return all(witness.relayed for witness in witnesses)


async def expired_by_the_other(fleet: Fleet) -> int:
    name = "gateway_settlements_total"
    return (await fleet.metric(name, "result", at=1))["expired"]


async def charged_ahead(fleet: Fleet, witness: Witness) -> int:
    """How many tokens more were charged than relayed, once that is as promised."""
    day = (await fleet.quota(witness.key, at=1))["windows"][0]
    charged = day["used"] - OUR_PROMPT_TOKENS
    attempt = await fleet.attempt(witness.request_id)
    assert day["reserved"] == 0
    assert 0 < witness.relayed <= attempt.tokens
    assert witness.text == passage(0, witness.relayed)
    assert all(one[1] <= next_[1] for one, next_ in pairwise(witness.marks))
    assert witness.relayed <= charged <= witness.relayed + witness.allowance
    return charged - witness.relayed
