"""The quota store in trouble, of every kind, under a gateway with live streams.

Whatever it is: no live stream is cut, new requests are served or refused at once, and
afterwards all is settled, once, and nothing is held.
"""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from uuid import uuid4

import anyio
import httpx
import pytest
from redis.asyncio import Redis

from gateway.admission.books import key_of
from gateway.demo.valkey import EmbeddedValkey
from tests.contract.severed import SeveredReplies
from tests.integration.fleet import Fleet, Key, Plan, eventually, free_port
from tests.integration.raw_client import PROMPT_TOKENS, RawClient, chat

pytestmark = pytest.mark.anyio

LASTING_SECONDS = 0.7
REFUSED_SECONDS = 0.25
AT_ONCE_SECONDS = 0.01
BACK_SECONDS = 1.5
HELD_AGAIN_SECONDS = 2.0
BUSY_SECONDS = 0.25
"""What a busy machine may add to any of these."""
TOKENS = {"brief": 10, "ending": 50, "lasting": 120, "living": 320}
RATES = {"brief": 0, "ending": 100, "lasting": 100, "living": 100}
MODELS = {name: f"sim-r{RATES[name]}-t{TOKENS[name]}-f0" for name in TOKENS}
"""The first stream ends during the trouble, the others after it."""


@dataclass(frozen=True)
class House:
    """A gateway and its store.

    Attributes:
        revoked: A key that was revoked; the gateway knows.
    """

    fleet: Fleet
    store: EmbeddedValkey
    revoked: Key

    async def command(self, *words: str) -> object:
        async with Redis.from_url(self.store.url) as redis:
            return await redis.execute_command(*words)  # type: ignore[no-untyped-call]

    async def reasons(self) -> list[str]:
        """Why the gateway is not ready."""
        async with self.fleet.client() as client:
            answer = (await client.get("/readyz")).json()
        return list(answer.get("reasons", ()))

    async def metric(self, name: str) -> int:
        return (await self.fleet.metric(f"gateway_{name}")).total()

    async def losses(self) -> int:
        """Books that were found to be lost."""
        found = await self.fleet.metric("gateway_degraded_total", by="reason")
        return found["store_lost"]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.store.pid, number)


type Change = Callable[[House], Awaitable[object]]


async def nothing(_: House) -> None:
    await anyio.lowlevel.checkpoint()


async def kill(house: House) -> None:
    house.signal(signal.SIGKILL)
    await house.store.stop()


async def restart(house: House) -> None:
    await house.store.stop()
    await house.store.start()


async def stop(house: House) -> None:
    house.signal(signal.SIGSTOP)
    await anyio.lowlevel.checkpoint()


async def go_on(house: House) -> None:
    house.signal(signal.SIGCONT)
    await anyio.lowlevel.checkpoint()


def told(*words: str) -> Change:
    return lambda house: house.command(*words)


@dataclass(frozen=True)
class Trouble:
    """A row of the matrix.

    Attributes:
        begin, end: Of the trouble.
        forgets: The data are lost.
        refuses: New requests are refused meanwhile.
        is_silent: The store does not answer, so that the gateway gives it up.
        delays: Settlements have to wait.
    """

    begin: Change
    end: Change = nothing
    forgets: bool = False
    refuses: bool = False
    is_silent: bool = False
    delays: bool = False


TROUBLES = {
    "killed": Trouble(
        kill,
        lambda house: house.store.start(),
        forgets=True,
        refuses=True,
        is_silent=True,
        delays=True,
    ),
    "stopped": Trouble(stop, go_on, refuses=True, is_silent=True, delays=True),
    "restarted empty": Trouble(restart, forgets=True),
    "flushed": Trouble(told("FLUSHALL"), forgets=True),
    "script-flushed": Trouble(told("SCRIPT", "FLUSH")),
    "out of memory": Trouble(
        told("CONFIG", "SET", "maxmemory", "1"),
        told("CONFIG", "SET", "maxmemory", "0"),
        refuses=True,
    ),
    "read-only": Trouble(
        told("REPLICAOF", "127.0.0.1", "1"),
        told("REPLICAOF", "NO", "ONE"),
        refuses=True,
        delays=True,
    ),
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The house stands on the loop of all tests."""
    return "asyncio"


@pytest.fixture(scope="module")
async def house() -> AsyncIterator[House]:
    async with EmbeddedValkey(port=free_port()) as store:
        plan = Plan(models=MODELS, store_url=store.url)
        async with Fleet(plan) as fleet:
            house = House(fleet, store, fleet.new_key())
            assert await eventually(house.reasons, lambda why: not why) == []
            await house.command("HSET", key_of(house.revoked.id), "revoked", "1")
            refused = await eventually(
                lambda: ask(house, house.revoked), lambda answer: answer.is_error
            )
            assert refused.status_code == 401
            yield house


async def ask(house: House, key: Key) -> httpx.Response:
    async with house.fleet.client(key) as client:
        return await client.post("/v1/chat/completions", json=chat("brief"))


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
async def test_streams_outlive_the_trouble_and_are_settled_once(
    house: House, trouble: Trouble
) -> None:
    fleet = house.fleet
    lost_before = await house.losses()
    last = "living" if trouble.forgets or trouble.is_silent else "lasting"
    keys = {model: fleet.new_key() for model in ("ending", last)}
    streams = {model: RawClient(fleet, key, uuid4().hex) for model, key in keys.items()}
    other = fleet.new_key()
    async with anyio.create_task_group() as tasks:
        for model, stream in streams.items():
            tasks.start_soon(listen, stream, model)
        await eventually(lambda: have_begun(streams.values()), bool)
        await trouble.begin(house)
        with anyio.move_on_after(LASTING_SECONDS):
            await check_meanwhile(house, trouble, other)
            await anyio.sleep_forever()
        await trouble.end(house)
        await check_afterwards(house, trouble, keys[last])
    for model, stream in streams.items():
        assert stream.complete
        assert stream.body.endswith(b"data: [DONE]\n\n")
        assert await fleet.used(keys[model]) == PROMPT_TOKENS + TOKENS[model]
    assert (await house.losses() > lost_before) is trouble.forgets
    queue = await eventually(
        lambda: house.metric("settlement_queue"), lambda waiting: not waiting
    )
    assert queue == 0
    assert (await ask(house, other)).status_code == 200
    assert await fleet.used(other) == PROMPT_TOKENS + TOKENS["brief"]
    assert (await ask(house, house.revoked)).status_code == 401
    revoked = await house.command("HGET", key_of(house.revoked.id), "revoked")
    assert revoked == b"1"


async def listen(stream: RawClient, model: str) -> None:
    async with stream:
        await stream.ask(model)
        await stream.read_to_end()


async def have_begun(streams: Iterable[RawClient]) -> bool:
    await anyio.lowlevel.checkpoint()
    return all(b"river" in stream.body for stream in streams)


async def check_meanwhile(house: House, trouble: Trouble, key: Key) -> None:
    if not trouble.refuses:
        return
    seconds = []
    for _ in range(8):
        began = anyio.current_time()
        answer = await ask(house, key)
        seconds.append(anyio.current_time() - began)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "quota_store_unavailable"
        assert {"retry-after", "retry-after-ms"} <= answer.headers.keys()
    print(f"refused after {[round(1000 * one, 1) for one in seconds]} ms")
    assert max(seconds) < REFUSED_SECONDS + BUSY_SECONDS
    assert min(seconds) < AT_ONCE_SECONDS
    assert await house.reasons() == ["redis"]
    if trouble.is_silent:
        assert await house.metric("redis_up") == 0


async def check_afterwards(house: House, trouble: Trouble, living: Key) -> None:
    ended_at = anyio.current_time()
    within = BACK_SECONDS + BUSY_SECONDS
    if trouble.delays:
        assert await house.metric("settlement_queue") >= 1
    assert await eventually(house.reasons, lambda why: not why, within) == []
    assert await house.metric("redis_up") == 1
    if trouble.forgets:
        within = HELD_AGAIN_SECONDS + BUSY_SECONDS - (anyio.current_time() - ended_at)
        quota = await eventually(
            lambda: house.fleet.quota(living),
            lambda quota: len(quota["reservations"]) > 0,
            within,
        )
        assert quota["windows"][0]["reserved"] > 0


async def test_process_starts_when_the_store_is_down_at_boot(house: House) -> None:
    (gateway,) = house.fleet.gateways
    await gateway.stop()
    await house.store.stop()
    await gateway.start()
    async with house.fleet.client() as client:
        await gateway.answers("/healthz", client)
    key = house.fleet.new_key()
    assert await house.reasons() == ["redis"]
    assert (await ask(house, key)).status_code == 503
    await house.store.start()
    within = BACK_SECONDS + BUSY_SECONDS
    assert await eventually(house.reasons, lambda why: not why, within) == []
    assert (await ask(house, key)).status_code == 200
    assert await house.fleet.used(key) == PROMPT_TOKENS + TOKENS["brief"]


async def test_every_charge_is_made_once_when_replies_are_lost_after_commit() -> None:
    async with EmbeddedValkey() as store:
        path = store.url.removeprefix("unix://")
        async with (
            SeveredReplies(path) as proxy,
            Fleet(Plan(models=MODELS, store_url=proxy.url)) as fleet,
        ):
            house = House(fleet, store, fleet.new_key())
            await eventually(house.reasons, lambda why: not why)
            refused, served = fleet.new_key(), fleet.new_key()
            async with RawClient(fleet, served, uuid4().hex) as stream:
                await stream.ask("ending")
                await stream.read_until(b"river")
                proxy.loses_replies = True  # that of its settlement among them
                assert (await ask(house, refused)).status_code == 503
                await stream.read_to_end()
                await anyio.sleep(0.1)
                proxy.loses_replies = False
            assert stream.body.endswith(b"data: [DONE]\n\n")
            within = BACK_SECONDS + BUSY_SECONDS
            assert await eventually(house.reasons, lambda why: not why, within) == []
            assert await fleet.used(served) == PROMPT_TOKENS + TOKENS["ending"]
            assert await fleet.used(refused) == 0
