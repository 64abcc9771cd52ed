"""The network between gateway and provider fails in every way that TCP can."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from uuid import uuid4

import anyio
import pytest

from gateway.demo.scenario import SimulatorSettings
from gateway.demo.simulated import SimulatedProvider
from tests.integration.fault_proxy import BlackHole, FaultProxy
from tests.integration.fleet import Fleet, Plan
from tests.integration.raw_client import PROMPT_TOKENS, RawClient

pytestmark = pytest.mark.anyio

TOKENS = 6
CONNECT_SECONDS = 0.5
FIRST_BYTE_SECONDS = 0.7
LATE_SECONDS = 0.5
BUSY_SECONDS = 0.3
SEEN_SECONDS = 0.1
"""The end of an idle connection has been seen by then."""
HEAD_BYTES = 20
EVENT_BYTES = 1300
"""Somewhere in a head, and somewhere among the contents."""


@dataclass(frozen=True)
class House:
    """A gateway, and a provider behind a network."""

    fleet: Fleet
    network: FaultProxy
    provider: SimulatedProvider


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The house stands on the loop of all tests."""
    return "asyncio"


@pytest.fixture(scope="module")
async def house() -> AsyncIterator[House]:
    settings = SimulatorSettings(rate=0, tokens=TOKENS, first_token_ms=0)
    async with AsyncExitStack() as stack:
        black_hole = stack.enter_context(BlackHole())
        provider = await stack.enter_async_context(SimulatedProvider(settings))
        network = FaultProxy(("127.0.0.1", provider.port))
        await stack.enter_async_context(network)
        unreachable = {
            "name": "unreachable",
            "adapter": "vllm",
            "base_url": black_hole.url,
            "connect_seconds": CONNECT_SECONDS,
        }
        candidate = {"provider": "unreachable", "model": "any"}
        plan = Plan(
            models={},
            providers={"far": network.url},
            streaming={"first_byte_seconds": FIRST_BYTE_SECONDS},
            extra={
                "providers": [unreachable],
                "models": [{"name": "unreachable", "candidates": [candidate]}],
                "routing": {"breaker": {"failures": 1000}},
            },
        )
        fleet = await stack.enter_async_context(Fleet(plan))
        yield House(fleet, network, provider)


async def ask(house: House, model: str = "far", **members: object) -> RawClient:
    """A request by a key of its own, read to its end, and charged as it must be."""
    key = house.fleet.new_key()
    async with RawClient(house.fleet, key, uuid4().hex) as client:
        await client.ask(model, **members)
        await client.read_to_end()
    assert client.complete
    charged = PROMPT_TOKENS + client.tokens if client.status == 200 else 0
    assert await house.fleet.used(key) == charged
    return client


def code_of(client: RawClient) -> str:
    """Of the error, as a whole answer or as the last event; empty without one."""
    last = bytes(client.body).rstrip().rpartition(b"\n\n")[2]
    error = last.removeprefix(b"data: ")
    return json.loads(error)["error"]["code"] if b'"error":' in error else ""


def told(client: RawClient) -> tuple[int, str]:
    return client.status, code_of(client)


@pytest.mark.parametrize("stream", [True, False])
async def test_connection_that_nobody_accepts_is_given_up_in_time(
    house: House, stream: bool
) -> None:
    began_at = anyio.current_time()
    client = await ask(house, "unreachable", stream=stream)
    seconds = anyio.current_time() - began_at
    assert told(client) == (504, "upstream_timeout")
    assert CONNECT_SECONDS <= seconds < CONNECT_SECONDS + LATE_SECONDS + BUSY_SECONDS


async def test_answer_is_whole_when_the_network_is_slow(house: House) -> None:
    house.network.delay_seconds = 0.1
    client = await ask(house)
    house.network.delay_seconds = 0.0
    assert client.tokens == TOKENS
    assert client.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("resets", [True, False])
async def test_failure_has_a_status_when_the_connection_ends_in_the_head(
    house: House, resets: bool
) -> None:
    house.network.resets = resets
    house.network.cut_after_bytes = HEAD_BYTES
    assert told(await ask(house)) == (502, "upstream_error")


@pytest.mark.parametrize("resets", [True, False])
async def test_failure_is_a_frame_when_the_connection_ends_in_an_event(
    house: House, resets: bool
) -> None:
    house.network.resets = resets
    house.network.cut_after_bytes = EVENT_BYTES
    client = await ask(house)
    assert told(client) == (200, "upstream_truncated")
    assert 0 < client.tokens < TOKENS


@pytest.mark.parametrize("resets", [True, False])
async def test_request_is_repeated_once_when_a_kept_connection_ends(
    house: House, resets: bool
) -> None:
    await ask(house)
    accepted = house.network.accepted
    house.network.resets = resets
    house.network.cut_after_bytes = 0
    client = await ask(house)
    assert client.tokens == TOKENS
    assert client.headers[b"x-gateway-attempts"] == b"2"
    assert house.network.accepted == accepted + 1
    asked = [one.request_id for one in list(house.provider.log)]
    assert asked.count(client.request_id) == 2


async def test_request_is_not_repeated_when_a_fresh_connection_ends(
    house: House,
) -> None:
    await house.network.cut()
    await anyio.sleep(SEEN_SECONDS)
    house.network.cut_after_bytes = 0
    client = await ask(house)
    assert told(client) == (502, "upstream_error")
    asked = [one.request_id for one in list(house.provider.log)]
    assert asked.count(client.request_id) == 1


async def test_nothing_is_charged_when_the_reply_is_lost(house: House) -> None:
    house.network.drops_replies = True
    clients = [await ask(house, stream=stream) for stream in (True, False)]
    house.network.drops_replies = False
    assert [told(client) for client in clients] == [(502, "upstream_error")] * 2


async def test_silence_ends_in_time_when_the_network_swallows_all(house: House) -> None:
    house.network.hold()
    began_at = anyio.current_time()
    client = await ask(house)
    seconds = anyio.current_time() - began_at
    house.network.release()
    assert told(client) == (504, "upstream_timeout")
    late = LATE_SECONDS + BUSY_SECONDS
    assert FIRST_BYTE_SECONDS <= seconds < FIRST_BYTE_SECONDS + late


async def test_refusal_is_told_and_forgotten_when_the_network_is_back(
    house: House,
) -> None:
    await house.network.refuse()
    assert told(await ask(house)) == (502, "upstream_error")
    await house.network.accept()
    assert (await ask(house)).tokens == TOKENS
