"""A client leaves: vLLM itself says that it stops, and what it had generated."""

import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial

import anyio
import pytest

from tests.integration.fleet import Fleet, eventually, running
from tests.integration.raw_client import Leave
from tests.real.adapters import through_both
from tests.real.engine import Engine
from tests.real.leaving import Scene, asking

pytestmark = [pytest.mark.real, pytest.mark.anyio]

CAP = 1000
CHOICES = 16
READING_SECONDS = 0.1
STILL_SECONDS = 1.5
"""A relay whose progress has not changed for so long is held back."""
MOMENTS = 10


async def while_vllm_reads_the_prompt(scene: Scene) -> None:
    await scene.reserved()
    await anyio.sleep(READING_SECONDS)


async def when_it_runs(scene: Scene) -> None:
    await scene.engine.at_work()


async def after_some_words(scene: Scene) -> None:
    while scene.client.body.count(b"\n\n") < 20:
        await scene.client.read()


async def when_held_back(scene: Scene) -> None:
    progress = -1
    while progress != (now := await scene.progress()) or now == 0:
        progress = now
        await anyio.sleep(STILL_SECONDS)
    await scene.engine.at_work()


@dataclass(frozen=True)
class Phase:
    """What the exchange does when it is left; the members make that last."""

    reached: Callable[[Scene], Awaitable[None]]
    members: dict[str, object] = field(default_factory=dict)


LARGE_EVENTS: dict[str, object] = {"n": CHOICES, "logprobs": True, "top_logprobs": 20}
PHASES = {
    "before the first event": Phase(while_vllm_reads_the_prompt),
    "while streaming": Phase(after_some_words),
    "while blocked in send": Phase(when_held_back, LARGE_EVENTS),
    "awaiting the whole answer": Phase(when_it_runs, {"stream": False}),
}

STALL_SECONDS = 2
CUT_SECONDS = 30.0
"""Until buffers are full, and then for that time."""

type Ask = Callable[..., AbstractAsyncContextManager[Scene]]


@pytest.fixture
def ask(fleet: Fleet, engine: Engine, adapter: str) -> Ask:
    """Ask for an answer that takes longer than a test."""
    return partial(asking, fleet, engine, adapter, max_tokens=CAP, ignore_eos=True)


@pytest.fixture(scope="module")
def impatient_fleet(base_url: str, upstream_model: str) -> Iterator[Fleet]:
    streaming = {"write_stall_seconds": STALL_SECONDS}
    with running(through_both(base_url, upstream_model, streaming=streaming)) as fleet:
        yield fleet


@pytest.mark.parametrize("how", Leave)
@pytest.mark.parametrize("phase", PHASES)
async def test_generation_ends_and_is_charged_when_the_client_leaves(
    fleet: Fleet, engine: Engine, ask: Ask, adapter: str, phase: str, how: Leave
) -> None:
    await engine.quiet()
    before, so_far = await fleet.outcomes(adapter), await given_up(fleet, adapter)
    async with ask(fleet.new_key(), **PHASES[phase].members) as scene:
        await PHASES[phase].reached(scene)
        left = await scene.leave(how)
    print(f"{adapter}, {phase}, {how.value}: {left}")
    left.check()
    assert await fleet.outcomes_since(adapter, before) == {"client_disconnect": 1}
    assert await given_up(fleet, adapter) == so_far + 1


@pytest.mark.parametrize("stream", [True, False])
async def test_generation_ends_and_is_charged_when_the_client_leaves_at_any_moment(
    fleet: Fleet, engine: Engine, ask: Ask, stream: bool
) -> None:
    for moment in range(MOMENTS):
        await engine.quiet()
        async with ask(fleet.new_key(), stream=stream) as scene:
            await scene.reserved()
            await anyio.sleep(moment * 0.04)
            left = await scene.leave(random.choice(list(Leave)))
        left.check()


async def test_generation_ends_and_is_charged_when_the_client_has_stalled(
    impatient_fleet: Fleet, engine: Engine, adapter: str
) -> None:
    fleet, key = impatient_fleet, impatient_fleet.new_key()
    await engine.quiet()
    long = {"max_tokens": CAP, "ignore_eos": True, **LARGE_EVENTS}
    async with asking(fleet, engine, adapter, key, **long) as scene:
        outcomes = await eventually(
            lambda: fleet.outcomes(adapter), lambda now: now.total() > 0, CUT_SECONDS
        )
        seconds, after = await engine.watched(scene.before.busy)
    generated = after.generated - scene.before.generated
    print(f"{adapter}, stalled: {seconds:.3f} s, generated {generated}")
    assert outcomes == {"client_stalled": 1}
    exact, _ = await scene.prompt(0)
    assert exact < await fleet.used(key) < exact + generated


async def given_up(fleet: Fleet, adapter: str) -> int:
    """How many requests that vLLM had were given up."""
    name = "gateway_attempts_total"
    return (await fleet.metric(name, by="result", provider=adapter))["cancelled"]
