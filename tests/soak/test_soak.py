"""Four gateways, one store, thousands of exchanges, and all that can go wrong.

What is proved, and from which witnesses, says ``history``. Two runs:

============ ============================== ====================================
run          goes wrong                     is proved
============ ============================== ====================================
exact        ``kill -9`` of gateways; the   every charge, exactly once, within
             store stopped, its scripts     its interval; no overshoot at any
             flushed, connections dropped   sample; nothing held
with losses  the store flushed, or killed   the same from the last loss on; no
             and restarted empty, besides   answer is ever cut; nothing held
============ ============================== ====================================

``SOAK_EXCHANGES`` sets how many exchanges a run has, ``SOAK_SEED`` repeats one.
"""

import os
from collections import Counter
from random import Random
from secrets import randbits

import anyio
import pytest
from redis.asyncio import Redis

from gateway.auth.principal import Limits
from gateway.demo.valkey import EmbeddedValkey
from tests.integration.fleet import UNLIMITED, Fleet, Plan, Terms
from tests.soak.chaos import Chaos
from tests.soak.history import End, History, charged_ahead, violations
from tests.soak.load import MODELS, Load

pytestmark = [pytest.mark.anyio, pytest.mark.soak]

GATEWAYS = 4
OWN_KEYS = 120
CROWD = 40
CONCURRENCY = 12
"""At a time on a shared key; a crowd of 40 reaches it."""
TOKENS_EACH = 25
"""About what one of a crowd costs, all in all."""
SHOWN = 40
CALM_SHARE = 0.2
"""The last exchanges come after the last loss."""


def exchanges_wanted() -> int:
    return int(os.environ.get("SOAK_EXCHANGES", "20000"))  # noqa: TID251 - a switch of tests


def seed() -> int:
    given = os.environ.get("SOAK_SEED")  # noqa: TID251 - a switch of tests
    return randbits(32) if given is None else int(given)


@pytest.mark.parametrize("losing", [False, True], ids=["exact", "with losses"])
async def test_books_agree_with_all_witnesses_after_a_soak(losing: bool) -> None:
    chosen, wanted = seed(), exchanges_wanted()
    print(f"\nSOAK_SEED={chosen} SOAK_EXCHANGES={wanted}")
    async with EmbeddedValkey() as store:
        plan = Plan(
            models=MODELS,
            terms=shared_terms(wanted),
            unlimited=OWN_KEYS,
            gateways=GATEWAYS,
            store_url=store.url,
        )
        async with Fleet(plan) as fleet, Redis.from_url(store.url) as redis:
            chaos = Chaos(fleet, store, Random(chosen), losing)
            load = Load(fleet, chaos, redis, Random(chosen + 1), wanted)
            history = await soak(load)
            found = violations(history)
            report(history, chaos)
            print(Counter(one.rule for one in found) or "no violation")
            for one in found[:SHOWN]:
                print(one)
    assert found == []


async def soak(load: Load) -> History:
    """Run it, let it become quiet, and give the record."""
    fleet, wanted = load.fleet, load.wanted
    own = [fleet.new_key(UNLIMITED) for _ in range(OWN_KEYS)]
    terms = shared_terms(wanted)
    shared = [fleet.new_key(some) for some in terms for _ in range(8)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load.chaos.run)
        tasks.start_soon(calm_down, load, wanted * CALM_SHARE)
        await load.run(own, shared, CROWD)
        tasks.cancel_scope.cancel()
    return await load.finish([*own, *shared])


async def calm_down(load: Load, left: float) -> None:
    while load.wanted > left:  # noqa: ASYNC110 - a number cannot be awaited
        await anyio.sleep(0.1)
    load.chaos.losing = False


def shared_terms(exchanges: int) -> tuple[Terms, ...]:
    """Limits that a crowd reaches, on 32 keys in four sizes."""
    month = max(1000, exchanges // 4 * TOKENS_EACH // 32)
    return tuple(
        Terms(Limits(tokens_per_month=month + size, concurrency=CONCURRENCY))
        for size in range(4)
    )


def report(history: History, chaos: Chaos) -> None:
    """The numbers, for people."""
    ends = Counter[End](one.end for one in history.exchanges)
    refused = [one for one in history.exchanges if one.end is End.REFUSED]
    codes = Counter[str](one.code for one in refused)
    killed = [one for one in history.exchanges if one.killed]
    known = [one for one in history.exchanges if one.charged is not None]
    used = sum(one.used for one in history.final.values())
    admitted = len(history.exchanges) - len(refused)
    print(f"{admitted} exchanges: {ends}; refused: {codes}")
    print(f"{chaos.done}; {len(killed)} exchanges at killed gateways")
    print(f"{len(known)} charges compared one by one, {used} tokens in all")
    ahead = charged_ahead(history)
    print(f"{len(history.samples)} samples; at most {max(ahead, default=0)} ahead")
