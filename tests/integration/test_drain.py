"""A signal to leave: nobody who is being served is dropped, and nothing is left held.

================================= ====================== ==========================
at the end of ``drain_seconds``   is told                and charged
================================= ====================== ==========================
a stream that has ended by then   nothing: it is whole   what it used
a stream that goes on             an error frame         prompt, what was generated
a stream without an event         503                    nothing
an answer that is not streamed    503                    the prompt, as estimated
================================= ====================== ==========================
"""

import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from uuid import uuid4

import anyio
import pytest

from gateway.api.quota import Quota
from gateway.demo.valkey import EmbeddedValkey
from tests.integration.fault_proxy import FaultProxy
from tests.integration.fleet import Fleet, Key, Plan, eventually, free_port
from tests.integration.gateway_process import GatewayProcess
from tests.integration.raw_client import (
    OUR_PROMPT_TOKENS,
    PROMPT_TOKENS,
    RawClient,
    chat,
)

pytestmark = pytest.mark.anyio

DRAIN_SECONDS = 2.5
LATE_SECONDS = 1.5
"""What ending the last exchanges and a busy machine may take beyond that."""
AT_ONCE_SECONDS = 3.0
BEGUN_SECONDS = 60.0
BETWEEN_SECONDS = 0.005
LEASED_SECONDS = 7.0
STAY = 1
"""The gateway that is not told to leave, and answers for the books."""
MODELS = {
    "brief": "sim-r20-t10-f0",
    "endless": "sim-r20-t100000-f0",
    "many": "sim-r2-t100000-f0",
    "wordless": "sim-xhang-before-first",
    "slow": "sim-r1-t500-f0",
    "large": "sim-r0-t400000-f0",
}
ASKED = ("endless", "wordless", "slow", "brief")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The fleet stands on the loop of all tests."""
    return "asyncio"


@pytest.fixture(scope="module")
async def store() -> AsyncIterator[FaultProxy]:
    port = free_port()
    async with EmbeddedValkey(port=port), FaultProxy(("127.0.0.1", port)) as store:
        yield store


@pytest.fixture(scope="module")
async def fleet(store: FaultProxy) -> AsyncIterator[Fleet]:
    plan = Plan(
        models=MODELS,
        max_concurrency=2000,
        gateways=2,
        store_url=f"redis://127.0.0.1:{store.port}",
        server={"drain_seconds": DRAIN_SECONDS},
    )
    async with Fleet(plan) as fleet:
        yield fleet


@pytest.fixture
async def leaving(fleet: Fleet) -> GatewayProcess:
    """The gateway that will leave; it has come back if it has left before."""
    gateway = fleet.gateways[0]
    if not gateway.is_running:
        await gateway.start()
    async with fleet.client() as client:
        await gateway.answers("/readyz", client)
    return gateway


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_all_are_served_or_told_when_the_gateway_leaves(
    fleet: Fleet, leaving: GatewayProcess, number: signal.Signals
) -> None:
    keys = {model: fleet.new_key() for model in ASKED}
    async with AsyncExitStack() as stack:
        clients = {}
        for model, key in keys.items():
            client = RawClient(fleet, key, uuid4().hex)
            clients[model] = await stack.enter_async_context(client)
            await client.ask(model, stream=model != "slow", max_tokens=500)
            await fleet.attempt(client.request_id)
        await clients["endless"].read_until(b"river")
        leaving.signal(number)
        left_at = anyio.current_time()
        await check_while_draining(fleet, keys["endless"])
        for client in clients.values():
            await client.read_to_end()
        assert await leaving.ended() == 0
        seconds = anyio.current_time() - left_at
    assert DRAIN_SECONDS <= seconds < DRAIN_SECONDS + LATE_SECONDS
    assert clients["brief"].body.endswith(b"data: [DONE]\n\n")
    check_cut(clients["endless"])
    for told in (clients["wordless"], clients["slow"]):
        assert (told.status, code_of(bytes(told.body))) == (503, "gateway_draining")
        assert {b"retry-after", b"retry-after-ms"} <= told.headers.keys()
    used = {model: await used_by(fleet, key) for model, key in keys.items()}
    assert used["brief"] == PROMPT_TOKENS + 10
    assert (used["wordless"], used["slow"]) == (0, OUR_PROMPT_TOKENS)
    attempt = await fleet.attempt(clients["endless"].request_id)
    least = PROMPT_TOKENS + clients["endless"].tokens
    assert least <= used["endless"] <= PROMPT_TOKENS + attempt.tokens


async def check_while_draining(fleet: Fleet, key: Key) -> None:
    """No new exchange; everything else is answered."""
    async with fleet.client(key) as client:
        ready = await eventually(
            lambda: client.get("/readyz"), lambda answer: answer.is_error
        )
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["draining"])
        refused = await client.post("/v1/chat/completions", json=chat("brief"))
        assert refused.status_code == 503
        assert code_of(refused.content) == "gateway_draining"
        assert {"retry-after", "retry-after-ms"} <= refused.headers.keys()
        for path in ("/healthz", "/metrics", "/v1/quota", "/v1/models"):
            assert (await client.get(path)).status_code == 200


async def test_process_leaves_as_soon_as_its_last_stream_has_ended(
    fleet: Fleet, leaving: GatewayProcess
) -> None:
    key = fleet.new_key()
    async with RawClient(fleet, key, uuid4().hex) as client:
        await client.ask("brief")
        await client.read_until(b"river")
        leaving.signal(signal.SIGTERM)
        await client.read_to_end()
        with anyio.fail_after(LATE_SECONDS):
            assert await leaving.ended() == 0
    assert client.body.endswith(b"data: [DONE]\n\n")
    assert await used_by(fleet, key) == PROMPT_TOKENS + 10


async def test_process_leaves_though_clients_neither_read_nor_ask_to_the_end(
    fleet: Fleet, leaving: GatewayProcess
) -> None:
    key = fleet.new_key()
    async with (
        RawClient(fleet, key, uuid4().hex) as stuck,
        RawClient(fleet, key, uuid4().hex) as asking,
        RawClient(fleet, key, uuid4().hex) as idle,
    ):
        await asking.send_head("content-length: 100")
        await stuck.ask("large", stream=False, max_tokens=400_000)
        await eventually(lambda: generated(fleet, stuck), bool, within_seconds=10)
        await idle.send(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        await idle.read_to_end()
        leaving.signal(signal.SIGTERM)
        with anyio.fail_after(DRAIN_SECONDS + 2 * LATE_SECONDS):
            assert await leaving.ended() == 0
    assert not asking.complete
    assert await used_by(fleet, key) >= 400_000


async def generated(fleet: Fleet, client: RawClient) -> bool:
    return (await fleet.attempt(client.request_id)).end is not None


async def test_second_signal_ends_the_process_at_once_and_leaves_the_leases(
    fleet: Fleet, leaving: GatewayProcess
) -> None:
    key = fleet.new_key()
    async with RawClient(fleet, key, uuid4().hex) as client:
        await client.ask("endless", max_tokens=500)
        await client.read_until(b"river")
        leaving.signal(signal.SIGTERM)
        await anyio.sleep(0.2)
        leaving.signal(signal.SIGTERM)
        with anyio.fail_after(AT_ONCE_SECONDS):
            assert await leaving.ended() == 1
        held = (await fleet.quota(key, at=STAY))["reservations"]
        await client.read_to_end()
    assert not client.complete
    assert len(held) == 1


async def test_300_streams_are_told_and_settled(
    fleet: Fleet, leaving: GatewayProcess, store: FaultProxy
) -> None:
    await drain_many(fleet, leaving, 300, store)


@pytest.mark.soak
@pytest.mark.timeout(180)
@pytest.mark.parametrize("delay_seconds", [0.0, 0.05, 0.09])
async def test_1000_streams_are_told_and_settled_also_with_a_slow_store(
    fleet: Fleet, leaving: GatewayProcess, store: FaultProxy, delay_seconds: float
) -> None:
    await drain_many(fleet, leaving, 1000, store, delay_seconds)


async def drain_many(
    fleet: Fleet,
    leaving: GatewayProcess,
    amount: int,
    store: FaultProxy,
    delay_seconds: float = 0.0,
) -> None:
    key = fleet.new_key()
    clients = [RawClient(fleet, key, uuid4().hex) for _ in range(amount)]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(listen, client)
            await anyio.sleep(BETWEEN_SECONDS)  # the store's proxy is in this loop, too
        assert await eventually(
            lambda: have_begun(clients), bool, within_seconds=BEGUN_SECONDS
        )
        left_at = anyio.current_time()
        leaving.signal(signal.SIGTERM)
        store.delay_seconds = delay_seconds
        assert await leaving.ended() == 0
        store.delay_seconds = 0.0
        seconds = anyio.current_time() - left_at
    print(f"{amount} streams: exit {seconds - DRAIN_SECONDS:.2f} s after the drain")
    assert seconds < DRAIN_SECONDS + 5
    async with fleet.client(at=STAY) as other:
        await fleet.gateways[STAY].answers("/readyz", other)
    for client in clients:
        check_cut(client)
    relayed = sum(client.tokens for client in clients)
    sent = sum([(await fleet.attempt(one.request_id)).tokens for one in clients])
    prompts = amount * PROMPT_TOKENS
    assert prompts + relayed <= await used_by(fleet, key) <= prompts + sent


async def listen(client: RawClient) -> None:
    async with client:
        await client.ask("many", max_tokens=500)
        await client.read_to_end()


async def have_begun(clients: Sequence[RawClient]) -> bool:
    await anyio.lowlevel.checkpoint()
    return all(b"river" in client.body for client in clients)


def check_cut(client: RawClient) -> None:
    """Whole events, then one error frame, then the proper end; no ``[DONE]``."""
    assert (client.status, client.complete) == (200, True)
    *events, last, rest = bytes(client.body).split(b"\n\n")
    assert rest == b""
    assert code_of(last.removeprefix(b"data: ")) == "gateway_draining"
    assert events
    assert b"data: [DONE]" not in events


def code_of(envelope: bytes) -> str:
    return str(json.loads(envelope)["error"]["code"])


async def used_by(fleet: Fleet, key: Key) -> int:
    """What was charged, as the gateway that stays says."""

    async def quota() -> Quota:
        return await fleet.quota(key, at=STAY)

    found = await eventually(
        quota, lambda found: not found["reservations"], within_seconds=LEASED_SECONDS
    )
    day = found["windows"][0]
    assert (found["reservations"], day["reserved"]) == ([], 0)
    return day["used"]
