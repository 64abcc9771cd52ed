"""One scene of the fault matrix: an exchange, whatever its provider and its client do.

::

    client ──► one of the gateways ──► store, behind a proxy
                       └─────────────► a provider, or another one behind a proxy

What provider faults come to, when nothing else goes wrong, say the tables of
``test_faults``; here something else does, at a random moment.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple
from uuid import uuid4

import anyio
import httpx

from gateway.api.quota import Quota
from gateway.demo.attempts import Attempt
from gateway.demo.scenario import Fault
from gateway.demo.simulated import SimulatedProvider
from gateway.demo.valkey import EmbeddedValkey
from tests.integration.baseline import HELD, open_files
from tests.integration.fault_proxy import FaultProxy
from tests.integration.fleet import Fleet, Key, eventually
from tests.integration.raw_client import (
    OUR_PROMPT_TOKENS,
    PROMPT_TOKENS,
    Leave,
    RawClient,
)
from tests.integration.test_faults import (
    STREAMED,
    TOKENS,
    WHOLE,
    Seen,
    check_retry_after,
    error_code,
)
from tests.soak.history import End, Exchange, Sample

GATEWAYS = 3
STAYS = GATEWAYS - 1
"""The gateway that nothing is done to; it is asked for the books."""
FAR = "far-"
"""Before a model's name: behind a network."""
MOST_SECONDS = 2.0
"""Something happens within so long after a scene's start."""
SETTLED_SECONDS = 15.0
UNSEEN_SECONDS = 0.3
"""A request whose client left at once may be read by its gateway as late as this."""
NO_STORE = (503, "quota_store_unavailable")
UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class House:
    """All that takes part.

    Attributes:
        store: The store itself.
        line: The way to it.
        network: The way to the provider behind it.
        far: That provider.
    """

    fleet: Fleet
    store: EmbeddedValkey
    line: FaultProxy
    network: FaultProxy
    far: SimulatedProvider

    def attempts(self) -> Iterator[Attempt]:
        """All that the two providers were asked since the last time."""
        for provider in (self.fleet.provider, self.far):
            while provider.log:
                yield provider.log.popleft()

    async def ready(self) -> None:
        """Wait until every gateway serves."""
        for at, gateway in enumerate(self.fleet.gateways):
            async with self.fleet.client(at=at) as client:
                await gateway.answers("/readyz", client)

    async def held(self) -> dict[str, int]:
        """What is open anywhere, once the idle connections have been closed."""
        found = {
            f"{name} at {at}": (
                await self.fleet.metric(f"gateway_{name}", at=at)
            ).total()
            for name in HELD
            for at in range(GATEWAYS)
        }
        files = {
            f"files of {at}": open_files(gateway)
            for at, gateway in enumerate(self.fleet.gateways)
        }
        providers = {
            "near": self.fleet.provider.open_connections,
            "far": self.far.open_connections,
        }
        return {**found, **files, **providers}


class Plot(NamedTuple):
    """What a scene's provider and client will do.

    Attributes:
        is_far: The provider is behind the network.
        leaves: How its client goes, None if it stays.
        after: How long it stays, or does not read, in seconds.
        at: Which gateway it asks.
    """

    fault: Fault
    stream: bool
    is_far: bool
    leaves: Leave | None
    after: float
    at: int

    @property
    def table(self) -> Mapping[Fault, Seen]:
        """What should become of it."""
        return STREAMED if self.stream else WHOLE


def plot_of(fault: Fault, *, stream: bool, random: Random) -> Plot:
    """All but the fault is left to chance."""
    return Plot(
        fault=fault,
        stream=stream,
        is_far=random.random() < 0.5,
        leaves=random.choice([None, None, *Leave]),
        after=random.choice([0.0, random.uniform(0, MOST_SECONDS)]),
        at=random.randrange(GATEWAYS),
    )


@dataclass
class Scene:
    """One exchange, and what became of it.

    Attributes:
        client: None if its gateway could not be reached.
        one: For the checker.
        done: Whether ``[DONE]`` came.
    """

    plot: Plot
    key: Key
    one: Exchange = field(init=False)
    client: RawClient | None = None
    done: bool = False

    def __post_init__(self) -> None:
        no_usage = self.plot.fault is Fault.NO_USAGE
        self.one = Exchange(
            id=uuid4().hex,
            key=self.key.id,
            stream=self.plot.stream,
            began=anyio.current_time(),
            estimate=OUR_PROMPT_TOKENS,
            prompt=OUR_PROMPT_TOKENS if no_usage else PROMPT_TOKENS,
        )

    async def play(self, house: House) -> None:
        """Have the exchange, and take note of it."""
        plot, one = self.plot, self.one
        client = RawClient(house.fleet, self.key, one.id, plot.at)
        try:
            async with client:
                self.client = client
                await self._converse(client)
        except OSError:
            one.code = UNREACHABLE
        one.ended = anyio.current_time()
        self._judge(client)

    async def _converse(self, client: RawClient) -> None:
        plot = self.plot
        model = FAR * plot.is_far + plot.fault
        with suppress(anyio.BrokenResourceError):
            await client.ask(model, stream=plot.stream)
            if plot.leaves is None:
                await anyio.sleep(plot.after)
                await client.read_to_end()
                return
            with anyio.move_on_after(plot.after):
                await client.read_to_end()
            await client.leave(plot.leaves)

    def _judge(self, client: RawClient) -> None:
        one = self.one
        if client.complete:
            self._judge_answer(client)
        elif self.plot.leaves is not None:
            one.end = End.LEFT
        elif client.status == 0:
            one.code = UNREACHABLE
        if one.stream and client.status == 200:
            one.relayed = client.tokens

    def _judge_answer(self, client: RawClient) -> None:
        one = self.one
        events = client.body.split(b"\n\n") if one.stream else [client.body]
        errors = [event for event in events if b'"error":' in event]
        self.done = b"data: [DONE]" in events
        if errors:
            assert len(errors) == 1
            assert errors[0] in events[-2:]  # nothing is said after it
            assert not self.done
            one.code = error_code(errors[0])
        if client.status == 200:
            one.end = End.CUT if errors else End.COMPLETE
            one.relayed = 0 if one.stream or errors else TOKENS
        else:
            check_retry_after(client)
            # What a drain ends may have been generated.
            drained = one.code == "gateway_draining" and not one.stream
            one.end = End.CUT if drained else End.REFUSED

    @property
    def status(self) -> int:
        """As the client saw it, 0 if it saw none."""
        return 0 if self.client is None else self.client.status

    @property
    def is_told(self) -> bool:
        """Whether its client stayed, and was not refused for want of the store."""
        return self.plot.leaves is None and (self.status, self.one.code) != NO_STORE

    def differs(self) -> str:
        """How it ended, if the table says otherwise."""
        said = self.plot.table[self.plot.fault]
        expected = (said.status, said.code or "", said.relayed, said.done)
        seen = (self.status, self.one.code, self.one.relayed, self.done)
        return "" if seen == expected else f"{self.plot}: {seen}, not {expected}"


async def books(house: House, scene: Scene) -> Sample:
    """The books of a scene's key, as soon as nothing is held or too late."""

    async def read() -> Quota | None:
        with suppress(httpx.HTTPStatusError):  # it may have lost sight of the store
            return await house.fleet.quota(scene.key, at=STAYS)
        return None

    quota = await eventually(
        read,
        lambda now: now is not None and not now["reservations"],
        within_seconds=SETTLED_SECONDS,
    )
    assert quota is not None
    month = quota["windows"][1]
    return Sample(
        at=anyio.current_time(),
        key=scene.key.id,
        used=month["used"],
        held=month["reserved"],
        in_use=quota["concurrency"]["in_use"],
    )
