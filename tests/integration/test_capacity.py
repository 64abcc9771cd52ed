"""What a process does when it has taken on as much as it can."""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from uuid import uuid4

import anyio
import httpx
import pytest

from gateway.exchange.capacity import (
    FIXED_FILES,
    connections_within,
    exchanges_within,
)
from tests.integration.fleet import GATEWAY, Fleet, Key, Plan, eventually, running
from tests.integration.raw_client import Leave, RawClient, chat

pytestmark = pytest.mark.anyio

MODELS = {"brief": "sim-r0-t5-f0", "endless": "sim-r20-t100000-f0"}
MOST = 3
STOPPED_SECONDS, RUNNING_SECONDS = 0.3, 0.05
FILES = FIXED_FILES + 3 * MOST

_LIMITED = """
import os, resource, sys
files = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
os.execv(sys.argv[2], sys.argv[2:])
"""
SHORT_OF_FILES = Plan(
    models=MODELS, command=(sys.executable, "-c", _LIMITED, str(FILES), str(GATEWAY))
)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running(Plan(models=MODELS, server={"max_exchanges": MOST})) as fleet:
        yield fleet


async def begin(stack: AsyncExitStack, fleet: Fleet, key: Key) -> RawClient:
    client = await stack.enter_async_context(RawClient(fleet, key, uuid4().hex))
    await client.ask("endless")
    await client.read_until(b"river")
    return client


async def ask(fleet: Fleet, key: Key, model: str = "brief") -> httpx.Response:
    async with fleet.client(key) as client:
        return await client.post("/v1/chat/completions", json=chat(model))


async def probe(fleet: Fleet, path: str) -> int:
    async with fleet.client() as client:
        return (await client.get(path)).status_code


def check_overloaded(answer: httpx.Response) -> None:
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "gateway_overloaded"
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["retry-after-ms"] == "1000"
    assert "x-request-id" in answer.headers


async def test_exchange_is_refused_when_as_many_are_live_as_may_be(
    fleet: Fleet,
) -> None:
    key = fleet.new_key()
    async with AsyncExitStack() as stack:
        clients = [await begin(stack, fleet, key) for _ in range(MOST)]
        check_overloaded(await ask(fleet, key))
        assert await probe(fleet, "/healthz") == 200
        assert await probe(fleet, "/readyz") == 200
        quota = await fleet.quota(key)
        assert quota["concurrency"]["in_use"] == MOST
        for client in clients:
            await client.leave(Leave.FIN)
    await fleet.used(key)
    assert (await ask(fleet, key)).status_code == 200


async def test_exchange_is_refused_when_the_event_loop_is_late_for_a_while() -> None:
    with running(Plan(models=MODELS, server={"max_lag_seconds": 0.1})) as fleet:
        key = fleet.new_key()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(starve, fleet.gateways[0].pid)
            await anyio.sleep(4 * (STOPPED_SECONDS + RUNNING_SECONDS))
            check_overloaded(await ask(fleet, key))
            assert await probe(fleet, "/healthz") == 200
            tasks.cancel_scope.cancel()
        answer = await eventually(
            lambda: ask(fleet, key), lambda now: now.status_code == 200, 2
        )
        assert answer.status_code == 200


async def starve(pid: int) -> None:
    """Leave the process so little time that each tick of 0.1 s comes late."""
    try:
        while True:
            os.kill(pid, signal.SIGSTOP)
            await anyio.sleep(STOPPED_SECONDS)
            os.kill(pid, signal.SIGCONT)
            await anyio.sleep(RUNNING_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_client_is_refused_when_the_process_has_no_descriptors_left() -> None:
    assert exchanges_within(FILES) == MOST
    with running(SHORT_OF_FILES) as fleet:
        key = fleet.new_key()
        async with AsyncExitStack() as stack:
            clients = [await begin(stack, fleet, key) for _ in range(MOST)]
            for _ in range(connections_within(FILES) - MOST):
                silent = RawClient(fleet, key, uuid4().hex)
                await stack.enter_async_context(silent)
            check_overloaded(await ask(fleet, key))
            assert await probe(fleet, "/healthz") == 200
            for client in clients:
                await client.leave(Leave.FIN)
        await fleet.used(key)
        assert (await ask(fleet, key)).status_code == 200


async def test_idle_client_makes_room_when_another_connects() -> None:
    with running(SHORT_OF_FILES) as fleet:
        key = fleet.new_key()
        async with AsyncExitStack() as stack:
            for _ in range(2 * connections_within(FILES)):
                client = await stack.enter_async_context(fleet.client(key))
                answer = await client.post("/v1/chat/completions", json=chat("brief"))
                assert answer.status_code == 200


def test_soft_limit_is_raised_to_the_hard_one_when_a_gateway_serves() -> None:
    with running(Plan(models=MODELS)) as fleet:
        soft, hard = resource.prlimit(fleet.gateways[0].pid, resource.RLIMIT_NOFILE)
    assert soft == hard
