"""Session affinity over real sockets, with two gateways and three equal providers."""

import json
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from uuid import uuid4

import anyio
import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from gateway.demo.scenario import SimulatorSettings
from gateway.demo.simulated import SimulatedProvider
from tests.integration.fleet import Fleet, Key, Plan, running
from tests.integration.raw_client import RawClient, chat

pytestmark = pytest.mark.anyio

NAMES = ("one", "two", "three")
MAX_LOAD = 1.5
SESSIONS = [f"conversation-{number}" for number in range(12)]
BY_HEADER = {"header": "X-Session-Id", "max_load": MAX_LOAD}
BY_FIELD = {"field": "prompt_cache_key"}


def plan(stack: ExitStack, affinity: dict[str, object], gateways: int) -> Plan:
    portal = stack.enter_context(start_blocking_portal())
    urls = {}
    for name in NAMES:
        provider = SimulatedProvider(SimulatorSettings(rate=50, first_token_ms=0))
        stack.enter_context(portal.wrap_async_context_manager(provider))
        urls[name] = provider.base_url
    return Plan(
        models={},
        gateways=gateways,
        extra={
            "providers": [
                {"name": name, "adapter": "vllm", "base_url": url}
                for name, url in urls.items()
            ],
            "models": [
                {
                    "name": "equal",
                    "candidates": [
                        {"provider": name, "model": "sim-t4"} for name in NAMES
                    ],
                },
                {
                    "name": "endless",
                    "candidates": [
                        {"provider": name, "model": "sim-r20-t100000-f0"}
                        for name in NAMES
                    ],
                },
            ],
            "routing": {"affinity": affinity},
        },
    )


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield stack.enter_context(running(plan(stack, BY_HEADER, gateways=2)))


async def answered_by(fleet: Fleet, key: Key, session: str, at: int = 0) -> str:
    async with fleet.client(key, at=at) as client:
        answer = await client.post(
            "/v1/chat/completions",
            json=chat("equal"),
            headers={"x-session-id": session},
        )
    return provider_of(answer)


def provider_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200
    return answer.headers["x-gateway-provider"]


async def test_session_is_answered_by_the_same_provider_at_every_gateway(
    fleet: Fleet,
) -> None:
    key = fleet.new_key()
    for session in SESSIONS:
        names = {await answered_by(fleet, key, session, at) for at in (0, 1, 0, 1)}
        assert len(names) == 1
    assert {await answered_by(fleet, key, one) for one in SESSIONS} == set(NAMES)


async def test_session_is_passed_on_when_its_provider_has_more_than_its_share(
    fleet: Fleet,
) -> None:
    key = fleet.new_key()
    body = json.dumps({**chat("endless"), "stream": True}).encode()
    began: list[str] = []
    async with AsyncExitStack() as stack:
        for _ in range(9):
            client = RawClient(fleet, key, uuid4().hex)
            await stack.enter_async_context(client)
            length = f"content-length: {len(body)}"
            await client.send_head(length, f"x-session-id: {SESSIONS[0]}")
            await client.send(body)
            await client.read_until(b"river")
            began.append(client.headers[b"x-gateway-provider"].decode())
    # Of nine it may have 1.5 times a third; the others share the rest.
    assert began.count(began[0]) == 4
    assert set(began) == set(NAMES)


async def test_field_of_the_request_names_the_session_where_that_is_configured() -> (
    None
):
    with ExitStack() as stack:
        fleet = stack.enter_context(running(plan(stack, dict(BY_FIELD), gateways=1)))
        key = fleet.new_key()
        async with fleet.client(key) as client:
            seen: dict[str, set[str]] = {}
            for session in SESSIONS * 2:
                body = {**chat("equal"), "prompt_cache_key": session}
                answer = await client.post("/v1/chat/completions", json=body)
                seen.setdefault(session, set()).add(provider_of(answer))
        assert all(len(names) == 1 for names in seen.values())
        assert set.union(*seen.values()) == set(NAMES)


async def test_requests_without_a_session_are_balanced_by_load(fleet: Fleet) -> None:
    key = fleet.new_key()
    names: list[str] = []

    async def one() -> None:
        async with fleet.client(key) as client:
            answer = await client.post("/v1/chat/completions", json=chat("equal"))
            names.append(provider_of(answer))

    async with anyio.create_task_group() as tasks:
        for _ in range(9):
            tasks.start_soon(one)
    assert set(names) == set(NAMES)
