"""A vLLM ends while it works: clients are told, charged fairly, and led elsewhere."""

import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import httpx
import pytest

from tests.integration.fleet import Fleet, eventually
from tests.real.adapters import ADAPTERS, model, through_both
from tests.real.engine import Engine, listed_model
from tests.real.given import given
from tests.real.leaving import Scene, asking
from tests.real.real_server import RealServer, starting

pytestmark = [pytest.mark.real, pytest.mark.anyio]

IDLE_SECONDS = 5
TOLD_SECONDS = 15.0
UNSEEN_TOKENS = 8
EXIT_SECONDS = 60.0
RETURN_SECONDS = 20.0
SPARE = "sim-r0-t12-f0"
WITH_SPARE = "{}-with-spare"
LONG: dict[str, Any] = {"max_tokens": 1000, "ignore_eos": True}
EVERYTHING = {"include_usage": True, "continuous_usage_stats": True}
"""Usage in every event, so that what came is known exactly."""


def kill_engine(server: RealServer) -> None:
    os.kill(server.child("EngineCore"), signal.SIGKILL)


def kill(server: RealServer) -> None:
    with suppress(ProcessLookupError):
        server.signal(signal.SIGKILL)


def terminate(server: RealServer) -> None:
    server.signal(signal.SIGTERM)


@dataclass(frozen=True)
class Site:
    """A vLLM, from both sides, and a fleet before it."""

    server: RealServer
    engine: Engine
    fleet: Fleet


@asynccontextmanager
async def fleet_before(server: RealServer) -> AsyncIterator[Fleet]:
    upstream, _ = listed_model(server.url)
    plan = through_both(
        server.url,
        upstream,
        models={"spare": SPARE},
        streaming={"idle_seconds": IDLE_SECONDS},
    )
    plan.extra["models"].extend(
        model(WITH_SPARE.format(one), (one, upstream), ("simulated", SPARE))
        for one in ADAPTERS
    )
    async with Fleet(plan) as fleet:
        yield fleet


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with (
        starting(given("SLUICE_REAL_VLLM")) as server,
        fleet_before(server) as fleet,
        Engine(server.url, listed_model(server.url)[0]) as engine,
    ):
        yield Site(server, engine, fleet)


@pytest.mark.parametrize(
    ("end", "codes"),
    [
        (kill_engine, {"upstream_error"}),
        (kill, {"upstream_truncated"}),
        # Its engine may be gone before it can say so, and then it falls silent.
        (terminate, {"upstream_error", "upstream_timeout"}),
    ],
)
async def test_exchanges_fail_and_others_are_led_elsewhere_when_vllm_ends(
    site: Site, end: Callable[[RealServer], None], codes: set[str]
) -> None:
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(
                asking_at(site, one, stream_options=EVERYTHING)
            )
            for one in ADAPTERS
        ]
        whole = [
            await stack.enter_async_context(asking_at(site, one, stream=False))
            for one in ADAPTERS
        ]
        for scene in streams:
            await twenty_events(scene)
        await site.engine.at_work(len(streams) + len(whole))
        end(site.server)
        await told(*streams)
        kill(site.server)  # as whoever terminated it does in the end
        await told(*whole)
    for scene in streams:
        await check_stream(scene, codes)
    for scene in whole:
        assert scene.client.status == 502
        assert await site.fleet.used(scene.key) == 0
    await check_down(site)


async def test_vllm_is_asked_again_when_it_is_back(site: Site) -> None:
    terminate(site.server)
    await check_down(site)
    port = site.server.address[1]
    async with starting(given("SLUICE_REAL_VLLM"), port=port):
        by_it = await eventually(
            partial(served_by, site.fleet),
            lambda seen: seen == list(ADAPTERS),
            RETURN_SECONDS,
        )
    assert by_it == list(ADAPTERS)


def asking_at(
    site: Site, adapter: str, **members: Any
) -> AbstractAsyncContextManager[Scene]:
    """A client that asks for a long answer."""
    key = site.fleet.new_key()
    return asking(site.fleet, site.engine, adapter, key, **LONG, **members)


async def twenty_events(scene: Scene) -> None:
    while scene.client.body.count(b"\n\n") < 20:
        await scene.client.read()


async def told(*scenes: Scene) -> None:
    """Wait until their clients have all that they will ever have."""
    began = anyio.current_time()
    with anyio.fail_after(TOLD_SECONDS):
        for scene in scenes:
            await scene.client.read_to_end()
    print(f"told after {anyio.current_time() - began:.2f} s")


async def check_stream(scene: Scene, codes: set[str]) -> None:
    """Whole events, one error, and no ``[DONE]``; charged is what came."""
    *events, nothing = bytes(scene.client.body).split(b"\n\n")
    *answers, last = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert nothing == b""
    assert scene.client.complete
    assert all(answer["choices"] for answer in answers)
    assert last["error"]["code"] in codes
    shown, charged = answers[-1]["usage"], await scene.fleet.used(scene.key)
    print(f"{last['error']['code']}: shown {shown['total_tokens']}, charged {charged}")
    # What it reports after its own error is charged, and not shown any more.
    assert 0 <= charged - shown["total_tokens"] <= UNSEEN_TOKENS


async def check_down(site: Site) -> None:
    """Nobody is there: refused, and when that is known, not even tried."""
    with anyio.fail_after(EXIT_SECONDS):
        await site.server.ended()
    for adapter in ADAPTERS:
        spare = await answer(site.fleet, WITH_SPARE.format(adapter))
        assert spare.status_code == 200
        assert spare.headers["x-gateway-provider"] == "simulated"
        refused = [await answer(site.fleet, adapter) for _ in range(8)]
        seen = [(one.status_code, one.json()["error"]["code"]) for one in refused]
        assert set(seen) <= {(502, "upstream_error"), (503, "no_healthy_provider")}
        assert seen[-1] == (503, "no_healthy_provider")
        assert int(refused[-1].headers["retry-after"]) >= 1


async def served_by(fleet: Fleet) -> list[str]:
    """Which providers answer where there is a spare."""
    answers = [await answer(fleet, WITH_SPARE.format(one)) for one in ADAPTERS]
    return [one.headers["x-gateway-provider"] for one in answers]


async def answer(fleet: Fleet, name: str) -> httpx.Response:
    """To a short question."""
    messages = [{"role": "user", "content": "Why so thick?"}]
    question = {"model": name, "messages": messages, "max_tokens": 4}
    async with fleet.client(fleet.new_key()) as client:
        return await client.post("/v1/chat/completions", json=question)
