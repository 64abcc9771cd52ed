"""Fifty clients stream while their providers are killed, hang and refuse."""

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import anyio
import httpx
import pytest

from gateway.demo.processes import Child
from tests.integration.fleet import GATEWAY, Fleet, Plan, free_port
from tests.integration.raw_client import OUR_PROMPT_TOKENS, PROMPT_TOKENS, chat

pytestmark = pytest.mark.anyio

CLIENTS = 50
TOKENS = 25
ROUNDS = 6
SILENCE_SECONDS = 3.0
BETWEEN_SECONDS = 0.01
OPEN_SECONDS = 1.0
PROVIDERS = {
    "killed": ("--rate", "50"),
    "hanging": ("--rate", "50"),
    "limited": ("--fault", "status-429"),
    "good": ("--rate", "50"),
    "busy": ("--fault", "status-503"),
    "busier": ("--fault", "status-503"),
}


@dataclass
class Told:
    """What clients were told, stream by stream."""

    whole: Counter[str] = field(default_factory=Counter)
    broken: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    tokens_of_broken: int = 0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The fleet stands on the loop of all tests."""
    return "asyncio"


@pytest.fixture(scope="module")
async def providers(anyio_backend: str) -> AsyncIterator[dict[str, tuple[Child, int]]]:
    async with AsyncExitStack() as stack:
        children = {}
        for name, options in PROVIDERS.items():
            port = free_port()
            command = [str(GATEWAY), "simulate", "--port", str(port), *options]
            command += ["--tokens", str(TOKENS), "--first-token-ms", "0"]
            child = await stack.enter_async_context(Child(command))
            children[name] = (child, port)
        for _, port in children.values():
            await listening(port)
        yield children


async def listening(port: int) -> None:
    with anyio.fail_after(20):
        while True:
            try:
                stream = await anyio.connect_tcp("127.0.0.1", port)
            except OSError:
                await anyio.sleep(0.02)
            else:
                await stream.aclose()
                return


def plan(providers: dict[str, tuple[Child, int]], retry_budget: float) -> Plan:
    def model(name: str, *candidates: str) -> dict[str, object]:
        asked = [{"provider": one, "model": "any"} for one in candidates]
        return {"name": name, "candidates": asked, "max_output_tokens": 500}

    extra = {
        "providers": [
            {
                "name": name,
                "adapter": "vllm",
                "base_url": f"http://127.0.0.1:{port}/v1",
            }
            for name, (_, port) in providers.items()
        ],
        "models": [
            model("shared", "killed", "hanging", "limited", "good"),
            model("refused", "busy", "busier"),
        ],
        "routing": {
            "retry_budget": retry_budget,
            "breaker": {"failures": 5, "open_seconds": OPEN_SECONDS},
        },
    }
    streaming = {"first_byte_seconds": SILENCE_SECONDS, "idle_seconds": SILENCE_SECONDS}
    return Plan(models={}, extra=extra, streaming=streaming)


async def stream_once(client: httpx.AsyncClient, told: Told) -> None:
    body = chat("shared") | {"stream": True}
    answer = await client.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        told.refused.append((answer.status_code, answer.json()["error"]["code"]))
        return
    provider = answer.headers["x-gateway-provider"]
    if answer.text.endswith("data: [DONE]\n\n"):
        told.whole[provider] += 1
        return
    *events, last, _ = answer.text.split("\n\n")
    told.broken.append((
        provider,
        httpx.Response(200, text=last[6:]).json()["error"]["code"],
    ))
    told.tokens_of_broken += sum('"content":"' in event for event in events)


async def attempts(fleet: Fleet) -> Counter[str]:
    return await fleet.metric("gateway_attempts_total", by="provider")


async def test_no_client_sees_more_than_its_own_provider_fail(
    providers: dict[str, tuple[Child, int]],
) -> None:
    # A dozen fail in the same moment: a budget of 20 % would tell some of them so.
    async with Fleet(plan(providers, retry_budget=1.0)) as fleet:
        await check_storm(fleet, providers)


async def check_storm(fleet: Fleet, providers: dict[str, tuple[Child, int]]) -> None:
    key, told = fleet.new_key(), Told()

    async def converse() -> None:
        async with fleet.client(key) as client:
            for _ in range(ROUNDS):
                await stream_once(client, told)

    async with anyio.create_task_group() as tasks:
        for _ in range(CLIENTS):
            tasks.start_soon(converse)
            await anyio.sleep(BETWEEN_SECONDS)
        while not told.whole.keys() >= {"killed", "hanging"}:  # noqa: ASYNC110 - of other processes
            await anyio.sleep(BETWEEN_SECONDS)
        killed, hanging = providers["killed"][0], providers["hanging"][0]
        os.kill(killed.pid, signal.SIGKILL)
        os.kill(hanging.pid, signal.SIGSTOP)
        await anyio.sleep(1.5)
        settled_at, before = anyio.current_time(), await attempts(fleet)
    seconds = anyio.current_time() - settled_at
    after = await attempts(fleet)
    os.kill(hanging.pid, signal.SIGCONT)

    assert told.refused == []
    assert set(told.broken) <= {
        ("killed", "upstream_truncated"),
        ("hanging", "upstream_timeout"),
    }
    assert told.broken
    whole, requests = told.whole.total(), CLIENTS * ROUNDS
    assert whole + len(told.broken) == requests
    assert after["killed"] - before["killed"] <= seconds / OPEN_SECONDS + 1
    assert after.total() <= 1.2 * requests
    used = await fleet.used(key)
    least = whole * (PROMPT_TOKENS + TOKENS) + told.tokens_of_broken
    most = whole * (PROMPT_TOKENS + TOKENS) + len(told.broken) * (
        max(PROMPT_TOKENS, OUR_PROMPT_TOKENS) + TOKENS
    )
    assert least < used <= most


async def test_attempts_are_bounded_when_everybody_is_busy(
    providers: dict[str, tuple[Child, int]],
) -> None:
    async with Fleet(plan(providers, retry_budget=0.2)) as fleet:
        await check_budget(fleet)


async def check_budget(fleet: Fleet) -> None:
    key, requests = fleet.new_key(), 300
    codes: Counter[tuple[int, str]] = Counter()

    async def ask() -> None:
        async with fleet.client(key) as client:
            for _ in range(requests // CLIENTS):
                answer = await client.post("/v1/chat/completions", json=chat("refused"))
                codes[answer.status_code, answer.json()["error"]["code"]] += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(CLIENTS):
            tasks.start_soon(ask)
    assert set(codes) <= {(503, "upstream_error"), (503, "no_healthy_provider")}
    assert codes.total() == requests
    assert (await attempts(fleet)).total() <= 1.2 * requests
    assert await fleet.used(key) == 0
