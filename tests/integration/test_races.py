"""Who wins the race: the table of docs/behaviour.md, and a case for each of its cells.

A case brings an exchange into its column's phase, lets its row's event happen, and says
in the table's own words what became of it.
"""

import json
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import anyio
import httpx
import pytest

from gateway.auth.principal import Limits
from gateway.demo.valkey import EmbeddedValkey
from tests.integration.fault_proxy import FaultProxy
from tests.integration.fleet import (
    UNLIMITED,
    Fleet,
    Key,
    Plan,
    Terms,
    eventually,
    free_port,
)
from tests.integration.puppet import USAGE, WORD, Puppet, Turn
from tests.integration.raw_client import OUR_PROMPT_TOKENS, Leave, RawClient

pytestmark = pytest.mark.anyio

DOCUMENT = Path(__file__).parents[2] / "docs" / "behaviour.md"
CAP = 900
LIMITED = Terms(Limits(tokens_per_day=OUR_PROMPT_TOKENS + CAP + 1))
"""One exchange of ``CAP`` fits, and no second one, also not after it."""
TOTAL_SECONDS = 2.0
HASTY = {
    "first_byte_seconds": 0.6,
    "idle_seconds": 0.7,
    "write_stall_seconds": 0.6,
    "total_seconds": TOTAL_SECONDS,
}
SOON_SECONDS = 15.0
ASKED_SECONDS = 0.05
"""A request has reached the store by then, a signal its process."""
LABELS = {
    "attempts_total": "result",
    "exchanges_total": "outcome",
    "rejections_total": "reason",
    "settlements_total": "result",
}


class Cell(NamedTuple):
    """What a cell says, without its markup."""

    client: str
    outcome: str
    settled: str
    metric: str


type Table = dict[tuple[str, str], Cell]


def read_table() -> Table:
    text = DOCUMENT.read_text("utf-8").partition("## Who wins the race")[2]
    rows = [
        [cell.strip().replace("`", "") for cell in line.strip("| ").split(" | ")]
        for line in re.sub(r"^\| \|", "| – |", text, flags=re.MULTILINE).splitlines()
        if line.startswith("|") and "---" not in line
    ]
    (_, *columns), *body = rows
    return {
        (row, column): Cell(*cell.split(" · "))
        for row, *cells in body
        for column, cell in zip(columns, cells, strict=True)
    }


TABLE = read_table()


@dataclass(frozen=True)
class House:
    """Gateways that share a store, behind a proxy, and a provider.

    Attributes:
        patient: The first of its gateways is for most cells, each other for one drain.
        hasty: Its gateway has short deadlines.
    """

    store: FaultProxy
    puppet: Puppet
    patient: Fleet
    hasty: Fleet
    unused: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The house stands on the loop of all tests."""
    return "asyncio"


def plan(store_url: str, puppet: Puppet, gateways: int, **streaming: float) -> Plan:
    return Plan(
        models={},
        terms=(LIMITED,),
        unlimited=40,
        gateways=gateways,
        store_url=store_url,
        server={"drain_seconds": 0.4},
        streaming=streaming,
        providers={"puppet": puppet.url},
        extra={
            "redis": {"timeout_seconds": 2.0},
            "routing": {"breaker": {"failures": 1000}},
        },
    )


async def standing() -> AsyncIterator[House]:
    port = free_port()
    async with (
        EmbeddedValkey(port=port),
        FaultProxy(("127.0.0.1", port)) as store,
        Puppet() as puppet,
    ):
        url = f"redis://127.0.0.1:{store.port}"
        drains = len({column for _, column in TABLE})
        async with (
            Fleet(plan(url, puppet, 1 + drains)) as patient,
            Fleet(plan(url, puppet, 1, **HASTY)) as hasty,
        ):
            unused = list(range(1, 1 + drains))
            yield House(store, puppet, patient, hasty, unused)  # noqa: ASYNC119 - pytest ends it


house = pytest.fixture(standing, scope="module", name="house")


@dataclass
class Scene:
    """One exchange, and all who take part in it.

    Attributes:
        fleet, at: Whose gateway, and which.
        left: The client has left.
        peak: What a gauge showed that is back at zero when the scene ends.
    """

    house: House
    fleet: Fleet
    at: int
    key: Key
    client: RawClient
    turn: Turn
    started_at: float
    left: bool = False
    peak: int = 0

    @property
    def is_settling(self) -> bool:
        """Whether the client has had the whole answer."""
        return self.client.complete

    @property
    def is_blocked(self) -> bool:
        """Whether the client has not read what it could."""
        return self.turn.said > self.words

    @property
    def words(self) -> int:
        """Words the client has read."""
        return self.client.body.count(WORD.encode())

    async def go_on(self) -> None:
        """The provider says the rest, and the client reads it."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.client.read_to_end)
            if not self.turn.over.is_set():
                await self.turn.say(not self.turn.said)
                await self.turn.finish()

    async def figure(self, metric: str) -> int:
        """One of the gateway's figures, by its name in the table."""
        name, _, value = metric.rstrip("}").partition("{")
        label = LABELS.get(name, "")
        figures = await self.fleet.metric(f"gateway_{name}", label, self.at)
        return figures[value]

    async def outcomes(self) -> Counter[str]:
        """How this gateway's exchanges ended."""
        name = "gateway_exchanges_total"
        return await self.fleet.metric(name, "outcome", self.at)


type Act = Callable[[Scene], Awaitable[None]]


# The columns: how an exchange comes into a phase.


async def before_the_first_event(scene: Scene) -> None:
    await scene.turn.begin()


async def while_streaming(scene: Scene) -> None:
    await scene.turn.begin()
    await scene.turn.say(2)
    while scene.words < 2:
        await scene.client.read()


async def while_blocked(scene: Scene) -> None:
    await while_streaming(scene)
    await scene.turn.say_until_blocked()


async def while_settling(scene: Scene) -> None:
    await while_streaming(scene)
    if scene.fleet is scene.house.hasty:  # its time is to be up soon
        while anyio.current_time() < scene.started_at + TOTAL_SECONDS / 2:
            await anyio.sleep(0.2)
            await scene.turn.say(1)
    scene.house.store.hold()
    await scene.go_on()


PHASES: dict[str, Act] = {
    "before the first event": before_the_first_event,
    "while streaming": while_streaming,
    "while blocked in send": while_blocked,
    "while settling": while_settling,
}


# The rows: what happens then.


async def client_leaves(scene: Scene) -> None:
    scene.left = not scene.is_settling
    await scene.client.leave(Leave.FIN)
    if scene.left:
        await scene.turn.left()


async def provider_ends(scene: Scene) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scene.turn.end)
        await scene.client.read_to_end()


async def provider_fails(scene: Scene) -> None:
    await scene.turn.reset()
    await scene.client.read_to_end()


async def deadline(scene: Scene) -> None:
    if scene.is_settling:
        await anyio.sleep(
            scene.started_at + TOTAL_SECONDS * 1.15 - anyio.current_time()
        )
    elif scene.is_blocked:
        await scene.turn.left()
    await scene.client.read_to_end()


async def quota_used_up(scene: Scene) -> None:
    async with RawClient(scene.fleet, scene.key, uuid4().hex) as other:
        await other.ask("puppet", max_tokens=CAP)
        await anyio.sleep(ASKED_SECONDS)
        scene.house.store.release()
        await other.read_to_end()
    assert other.status == 429
    await scene.go_on()


async def drain(scene: Scene) -> None:
    gateway = scene.fleet.gateways[scene.at]
    gateway.signal(signal.SIGTERM)
    await anyio.sleep(ASKED_SECONDS)
    scene.house.store.release()
    if not scene.is_blocked:
        await scene.client.read_to_end()
    assert await gateway.ended() == 0
    await scene.client.read_to_end()


async def redis_lost(scene: Scene) -> None:
    house = scene.house
    await house.store.refuse()
    house.store.release()
    await scene.go_on()
    scene.peak = await eventually(lambda: scene.figure("settlement_queue"), bool)
    await house.store.accept()
    for gateway in (*house.hasty.gateways, *house.patient.gateways):
        if gateway.is_running:
            async with httpx.AsyncClient(base_url=gateway.base_url) as client:
                await gateway.answers("/readyz", client)


EVENTS: dict[str, Act] = {
    "client leaves": client_leaves,
    "provider ends": provider_ends,
    "provider fails": provider_fails,
    "deadline": deadline,
    "quota used up": quota_used_up,
    "drain": drain,
    "Redis lost": redis_lost,
}


def test_every_cell_of_the_table_has_a_case() -> None:
    assert set(TABLE) == set(product(EVENTS, PHASES))


@pytest.mark.parametrize(("row", "column"), TABLE)
async def test_race_ends_as_the_table_says(house: House, row: str, column: str) -> None:
    said = TABLE[row, column]
    fleet = house.hasty if row == "deadline" else house.patient
    at = house.unused.pop() if row == "drain" else 0
    key = fleet.new_key(LIMITED if row == "quota used up" else UNLIMITED)
    async with RawClient(fleet, key, uuid4().hex, at) as client:
        started_at = anyio.current_time()
        await client.ask("puppet", max_tokens=CAP)
        turn = await house.puppet.turn()
        scene = Scene(house, fleet, at, key, client, turn, started_at)
        outcomes, figure = await scene.outcomes(), await scene.figure(said.metric)
        try:
            with anyio.fail_after(SOON_SECONDS):
                await PHASES[column](scene)
                await EVENTS[row](scene)
        finally:
            house.store.release()
            scene.turn.over.set()
        if row == "drain":
            outcome = outcome_logged(scene)
            increase = int(f"{{{outcome}}}" in said.metric)
        else:
            outcome = await the_outcome(scene, outcomes)
            increase = scene.peak or await scene.figure(said.metric) - figure
    assert Cell(seen(scene), outcome, await settled(scene), said.metric) == said
    assert increase == 1


def seen(scene: Scene) -> str:
    """What the client saw, in the table's words."""
    client = scene.client
    if scene.left:
        return "–"
    *events, rest = bytes(client.body).split(b"\n\n")
    if client.status != 200:
        return f"{client.status} {code_of(rest)}"
    if not client.complete:
        return "frames, cut"
    assert rest == b""
    assert all(WORD.encode() in event for event in events[: scene.words])
    if events[-1] == b"data: [DONE]":
        return "everything" if scene.words == scene.turn.said else "gaps"
    return f"frames, {code_of(events[-1].removeprefix(b'data: '))}"


def code_of(envelope: bytes) -> str:
    return str(json.loads(envelope)["error"]["code"])


async def the_outcome(scene: Scene, before: Counter[str]) -> str:
    after = await eventually(scene.outcomes, lambda now: now != before)
    (outcome,) = (after - before).elements()
    return outcome


def outcome_logged(scene: Scene) -> str:
    """The only one this gateway had, from its last words."""
    log = scene.fleet.gateways[scene.at].log
    (counts,) = re.findall(r"no exchange is left; since the start: (.*)", log)
    amount, _, outcome = counts.partition(" ")
    assert amount == "1"
    return str(outcome)


async def settled(scene: Scene) -> str:
    """What was charged, in the table's words."""
    used = await scene.fleet.used(scene.key)
    if used == 0:
        return "nothing"
    if used == sum(USAGE):
        return "usage"
    least = OUR_PROMPT_TOKENS + scene.words
    within = least <= used <= OUR_PROMPT_TOKENS + scene.turn.said
    return "prompt + generated" if within else str(used)
