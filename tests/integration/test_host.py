"""What a host does to a process: it does not run for seconds, or its clock jumps."""

import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from uuid import uuid4

import anyio
import pytest

from gateway.auth.principal import Limits
from gateway.demo.valkey import EmbeddedValkey
from tests.integration.baseline import at_rest, held, left_over
from tests.integration.fault_proxy import FaultProxy
from tests.integration.fleet import Fleet, Key, Plan, Terms, eventually, free_port
from tests.integration.raw_client import PROMPT_TOKENS, RawClient, chat

pytestmark = pytest.mark.anyio

LEASE_SECONDS = 5.0
HASTE_SECONDS = 0.5
"""Less than any sleep: what came meanwhile has come in time."""
QUIET_SECONDS = 4.0
BEGUN_SECONDS = 0.5
ASKED_SECONDS = 0.05
"""A call has reached the store by then, and is not overdue."""
STREAMS = 20
CALLERS = 8
TOKENS = {"steady": 100, "brief": 3}
MODELS = {
    "steady": "sim-r30-t100-f0",
    "brief": "sim-r0-t3-f0",
    "silent": "sim-r0-f0-xhang-mid-stream",
}
LIMITED = Terms(Limits(requests_per_minute=2, tokens_per_day=100_000))
CLOCK = Path(__file__).with_name("jumping_clock.py")
HALF_A_DAY = 43_200
JUMPS = {signal.SIGUSR1: 2, signal.SIGUSR2: -2}
"""How many halves of a day."""
IDLE_SECONDS = 1.0
LATE_SECONDS = 0.8
STAYS = 1
"""The gateway that is not stopped, and sweeps."""


@pytest.fixture
async def pair() -> AsyncIterator[Fleet]:
    waits = {"first_byte_seconds": HASTE_SECONDS, "idle_seconds": HASTE_SECONDS}
    async with Fleet(Plan(models=MODELS, gateways=2, streaming=waits)) as fleet:
        yield fleet


@pytest.fixture
async def jumping() -> AsyncIterator[Fleet]:
    plan = Plan(
        models=MODELS,
        terms=(LIMITED,),
        streaming={"idle_seconds": IDLE_SECONDS},
        command=(sys.executable, str(CLOCK), "gateway"),
    )
    async with Fleet(plan) as fleet:
        yield fleet


@dataclass
class Visitor:
    """Asks one thing after the other; each must be answered whole.

    Attributes:
        asked: How often by now.
    """

    fleet: Fleet
    model: str
    key: Key
    asked: int = 0

    async def ask(self) -> None:
        self.asked += 1
        async with RawClient(self.fleet, self.key, uuid4().hex) as client:
            await client.ask(self.model)
            await client.read_to_end()
        assert client.status == 200, client.body
        assert client.body.endswith(b"data: [DONE]\n\n"), client.body[-300:]
        assert client.tokens == TOKENS[self.model]

    async def ask_until(self, end: anyio.Event) -> None:
        while not end.is_set():
            await self.ask()

    @property
    def cost(self) -> int:
        return self.asked * (PROMPT_TOKENS + TOKENS[self.model])


@pytest.mark.parametrize(
    ("seconds", "times"),
    [
        (0.6, 4),
        pytest.param(3.0, 1, marks=pytest.mark.soak),
        pytest.param(7.0, 1, marks=pytest.mark.soak),
    ],
)
async def test_nobody_is_failed_or_charged_twice_when_a_process_is_stopped(
    pair: Fleet, seconds: float, times: int
) -> None:
    await Visitor(pair, "brief", pair.new_key()).ask()
    before = await at_rest(lambda: held(pair))
    streams = [Visitor(pair, "steady", pair.new_key()) for _ in range(STREAMS)]
    callers = [Visitor(pair, "brief", pair.new_key()) for _ in range(CALLERS)]
    woken, expired = anyio.Event(), 0
    async with anyio.create_task_group() as tasks:
        for stream in streams:
            tasks.start_soon(stream.ask)
        for caller in callers:
            tasks.start_soon(caller.ask_until, woken)
        for _ in range(times):
            await anyio.sleep(BEGUN_SECONDS)
            pair.gateways[0].signal(signal.SIGSTOP)
            await anyio.sleep(seconds)
            expired = await expired_by_the_other(pair)
            pair.gateways[0].signal(signal.SIGCONT)
        await anyio.sleep(BEGUN_SECONDS)
        woken.set()
    asked = sum(one.asked for one in callers)
    print(f"stopped for {seconds} s: {expired} leases expired, {asked} calls answered")
    assert (expired >= STREAMS) is (seconds > LEASE_SECONDS)
    for visitor in (*streams, *callers):
        assert await pair.used(visitor.key) == visitor.cost
    assert not await pair.metric("gateway_rejections_total")
    assert "store is lost" not in pair.gateways[0].log
    assert await left_over(lambda: held(pair), before, QUIET_SECONDS) == {}


async def test_call_to_the_store_is_not_given_up_when_its_reply_came_in_our_sleep() -> (
    None
):
    port = free_port()
    async with (
        EmbeddedValkey(port=port),
        FaultProxy(("127.0.0.1", port)) as store,
        Fleet(
            Plan(models=MODELS, store_url=f"redis://127.0.0.1:{store.port}")
        ) as fleet,
    ):
        async with fleet.client() as client:
            await fleet.gateways[0].answers("/readyz", client)
        callers = [Visitor(fleet, "brief", fleet.new_key()) for _ in range(CALLERS)]
        await callers[0].ask()
        store.hold()
        async with anyio.create_task_group() as tasks:
            for caller in callers:
                tasks.start_soon(caller.ask)
            await anyio.sleep(ASKED_SECONDS)
            fleet.gateways[0].signal(signal.SIGSTOP)
            store.release()
            await anyio.sleep(1)
            fleet.gateways[0].signal(signal.SIGCONT)
        for caller in callers:
            assert await fleet.used(caller.key) == caller.cost


@pytest.mark.parametrize("jump", JUMPS)
async def test_streams_deadlines_and_windows_stay_when_the_clock_jumps(
    jumping: Fleet, jump: signal.Signals
) -> None:
    key, other = jumping.new_key(LIMITED), jumping.new_key()
    stream = Visitor(jumping, "steady", key)
    before = await jumping.quota(key)
    async with RawClient(jumping, other, uuid4().hex) as silent:
        await silent.ask("silent")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.ask)
            await silent.read_until(b"river")
            spoke_at, clock = anyio.current_time(), await clock_of(jumping)
            jumping.gateways[0].signal(jump)
            now = await eventually(
                lambda: clock_of(jumping), lambda now: abs(now - clock) > HALF_A_DAY
            )
            assert round((now - clock) / HALF_A_DAY) == JUMPS[jump]
            await silent.read_to_end()
            waited = anyio.current_time() - spoke_at
    assert b"upstream_timeout" in silent.body
    assert IDLE_SECONDS - 0.1 < waited < IDLE_SECONDS + LATE_SECONDS
    assert await jumping.used(key) == stream.cost
    after = await jumping.quota(key)
    resets = [
        [one["resets_at"] for one in quota["windows"]] for quota in (before, after)
    ]
    assert resets[0] == resets[1]
    await stream.ask()
    async with jumping.client(key) as client:
        refused = await client.post("/v1/chat/completions", json=chat("steady"))
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 0 < int(refused.headers["retry-after"]) <= 30
    assert await jumping.used(key) == stream.cost


async def clock_of(fleet: Fleet) -> float:
    """The gateway's, Unix seconds."""
    async with fleet.client() as client:
        date = (await client.get("/healthz")).headers["date"]
    return parsedate_to_datetime(date).timestamp()


async def expired_by_the_other(fleet: Fleet) -> int:
    name = "gateway_settlements_total"
    return (await fleet.metric(name, "result", at=STAYS))["expired"]
