"""The whole fault matrix, again and again, in pairs that nobody chose.

Every fault of a provider, streamed and not, meets in each round a client that stays or
goes, and something that happens to the store, the network or the host. Whatever it is:

* an answer is whole, or ends with one error frame, or is one error, and no ``[DONE]``
  follows a failure;
* who was touched by nothing but the provider's fault sees what ``test_faults`` says, or
  that there is no store;
* the charge is right, once (``history``), and every outcome is one of the known;
* afterwards nothing is held, no connection is open, and no file.

``MATRIX_ROUNDS`` sets how many rounds there are, ``SOAK_SEED`` repeats a run.
"""

import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import batched, product
from random import Random
from secrets import randbits

import anyio
import pytest

from gateway.demo.scenario import Fault
from gateway.demo.simulated import SimulatedProvider
from gateway.demo.valkey import EmbeddedValkey
from streaming.outcome import Outcome
from tests.integration.baseline import at_rest, left_over
from tests.integration.fault_proxy import FaultProxy
from tests.integration.fleet import Fleet, Plan, free_port
from tests.integration.test_faults import TOKENS
from tests.soak.history import End, History, Violation, violations
from tests.soak.matrix import (
    FAR,
    GATEWAYS,
    MOST_SECONDS,
    STAYS,
    UNREACHABLE,
    UNSEEN_SECONDS,
    House,
    Scene,
    books,
    plot_of,
)
from tests.soak.troubles import Trouble, troubles

pytestmark = [pytest.mark.anyio, pytest.mark.soak, pytest.mark.timeout(3600)]

SCENES = 26
"""At a time, around one trouble: four times as many are a round."""
QUIET_SECONDS = 15.0
SHOWN = 20


def switch(name: str, default: int) -> int:
    return int(os.environ.get(name, default))  # noqa: TID251 - a switch of tests


@asynccontextmanager
async def standing(keys: int) -> AsyncIterator[House]:
    models = {str(fault): f"sim-r0-t{TOKENS}-f0-m1-d0.05-x{fault}" for fault in Fault}
    port = free_port()
    async with (
        EmbeddedValkey(port=port) as store,
        FaultProxy(("127.0.0.1", port)) as line,
        SimulatedProvider() as far,
        FaultProxy(("127.0.0.1", far.port)) as network,
    ):
        plan = Plan(
            models=models,
            unlimited=keys,
            keys_file=True,
            gateways=GATEWAYS,
            store_url=f"redis://127.0.0.1:{line.port}",
            server={"max_response_bytes": 65_536},
            streaming={
                "first_byte_seconds": 1.0,
                "idle_seconds": 1.0,
                "total_seconds": 3.0,
                "max_event_bytes": 65_536,
            },
            extra={
                "providers": [
                    {"name": "far", "adapter": "vllm", "base_url": network.url}
                ],
                "models": [
                    {
                        "name": FAR + name,
                        "max_output_tokens": 500,
                        "candidates": [{"provider": "far", "model": model}],
                    }
                    for name, model in models.items()
                ],
                "routing": {"breaker": {"failures": 1_000_000}},
            },
        )
        async with Fleet(plan) as fleet:
            yield House(fleet, store, line, network, far)


async def test_nothing_is_lost_held_or_said_wrong_whatever_meets() -> None:
    seed, rounds = switch("SOAK_SEED", randbits(32)), switch("MATRIX_ROUNDS", 20)
    print(f"\nSOAK_SEED={seed} MATRIX_ROUNDS={rounds}")
    random, done, ends = Random(seed), Counter[str](), Counter[str]()
    rows = list(product(Fault, [True, False]))
    async with standing(rounds * len(rows) + 1) as house:
        await house.ready()
        known = troubles(house.fleet.new_key())
        before = await at_rest(house.held)
        waiting: list[str] = []
        compared = 0
        for _ in range(rounds):
            random.shuffle(rows)
            for some in batched(rows, SCENES, strict=False):
                waiting = waiting or random.sample(list(known), len(known))
                name = waiting.pop()
                scenes = [
                    Scene(
                        plot_of(fault, stream=stream, random=random),
                        house.fleet.new_key(),
                    )
                    for fault, stream in some
                ]
                compared += await play(house, scenes, known[name], random, name)
                done[name] += 1
                ends.update(one.one.end for one in scenes)
        print(f"{ends.total()} exchanges, {compared} of them as the tables say")
        print(f"ends: {dict(ends)}; troubles: {dict(done)}")
        assert await left_over(house.held, before, QUIET_SECONDS) == {}


async def play(
    house: House, scenes: Sequence[Scene], trouble: Trouble, random: Random, name: str
) -> int:
    """So many scenes at once, and the trouble amid them; then all must be right.

    Returns:
        How many of them were compared with the tables.
    """
    victim = random.randrange(STAYS)
    losses: list[float] = []
    async with anyio.create_task_group() as tasks:
        for scene in scenes:
            tasks.start_soon(scene.play, house)
        await anyio.sleep(random.uniform(0, MOST_SECONDS / 2))
        await trouble.happen(house, random, victim)
        if trouble.forgets:
            losses.append(anyio.current_time())
    await house.ready()
    await anyio.sleep(UNSEEN_SECONDS)
    history = History([scene.one for scene in scenes], losses=losses)
    for scene in scenes:
        history.final[scene.key.id] = await books(house, scene)
        scene.one.charged = history.final[scene.key.id].used
    take_note(house, scenes, trouble, victim)
    wrong = [str(one) for one in found(history, scenes)]
    untouched = [one for one in scenes if not touches(trouble, victim, one)]
    compared = [one for one in untouched if one.is_told]
    wrong += [differs for one in compared if (differs := one.differs())]
    assert not wrong, f"{name} at {victim}: {wrong[:SHOWN]}"
    for at in range(GATEWAYS):
        metric = await house.fleet.metric("gateway_exchanges_total", "outcome", at)
        assert metric.keys() <= set(Outcome)
    return len(compared)


def take_note(
    house: House, scenes: Sequence[Scene], trouble: Trouble, victim: int
) -> None:
    """What the providers sent, and who was at a gateway that was killed."""
    sent = Counter[str]()
    for attempt in house.attempts():
        sent[attempt.request_id] += attempt.tokens
    for scene in scenes:
        scene.one.sent = sent[scene.one.id]
        scene.one.killed = trouble.kills and scene.plot.at == victim
        if scene.one.code == UNREACHABLE and touches(trouble, victim, scene):
            scene.one.end = End.REFUSED


def touches(trouble: Trouble, victim: int, scene: Scene) -> bool:
    """Whether the trouble may have changed what this client saw."""
    of_host = trouble.of_host and scene.plot.at == victim
    return of_host or (trouble.of_network and scene.plot.is_far)


def found(history: History, scenes: Sequence[Scene]) -> list[Violation]:
    """What the checker finds; a cut is right here if it is one that was told."""
    told = {scene.one.id for scene in scenes if scene.one.end is End.CUT}
    return [
        one for one in violations(history) if one.rule != "cut" or one.about not in told
    ]
