"""The Redis ledger when the store is stopped, killed, flushed, full or read-only."""

import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from time import monotonic

import anyio
import pytest
from anyio.lowlevel import checkpoint
from redis import Redis

from gateway.admission.ledger import (
    Grant,
    Ledger,
    Renewal,
    RenewalState,
    SettleResult,
    Usage,
)
from gateway.admission.redis_ledger import RedisLedger
from gateway.admission.store import FAILURES
from gateway.auth.principal import Limits, Principal
from gateway.demo.valkey import EmbeddedValkey
from gateway.errors import InvalidApiKey, StoreUnavailable
from tests.contract.counts import Counts
from tests.contract.desk import day_of, hold_of
from tests.contract.raw_books import RawBooks
from tests.contract.severed import SeveredReplies

pytestmark = pytest.mark.anyio

TEAM = Principal("team", "digest", limits=Limits(tokens_per_day=1000))
RECOVERY_SECONDS = 3.0
IN_TIME_SECONDS = 0.4
"""The time-out of 0.2 s, and what a busy machine adds to a call."""
AT_ONCE_SECONDS = 0.15
"""Less than the time-out, on a busy machine too."""


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
async def ledger(server: EmbeddedValkey, counts: Counts) -> AsyncIterator[RedisLedger]:
    async with RedisLedger(server.url, observer=counts) as ledger:
        await ledger.seed([TEAM])
        yield ledger


async def load_scripts(ledger: Ledger) -> None:
    """What the store does not know yet, it answers with NOSCRIPT, and does not run."""
    grant = await ledger.reserve(hold_of("team"))
    await ledger.settle(grant, Usage(0, 0))


@pytest.fixture
def client(server: EmbeddedValkey) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        yield client


async def seconds_to_fail(call: Callable[[], Awaitable[object]]) -> float:
    """How long a call takes that must find no store."""
    started = monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await call()
    assert caught.value.retry_after_seconds == 1.0
    return monotonic() - started


async def recovered(ledger: Ledger) -> None:
    """Wait until the store is used again."""
    with anyio.fail_after(RECOVERY_SECONDS):
        while True:
            try:
                await ledger.ping()
            except StoreUnavailable:
                await anyio.sleep(0.02)
            else:
                return


async def every_call_fails(ledger: Ledger, grant: Grant, within: float) -> None:
    for call in (
        lambda: ledger.reserve(hold_of("team")),
        lambda: ledger.renew([Renewal(grant, 1, dispatched=True)]),
        lambda: ledger.settle(grant, Usage(1, 1)),
        lambda: ledger.release(grant),
        lambda: ledger.sweep("team"),
        lambda: ledger.read("team"),
        lambda: ledger.seed([TEAM]),
        lambda: ledger.revoke("team"),
        lambda: ledger.is_revoked("team"),
        ledger.ping,
    ):
        assert await seconds_to_fail(call) <= within


async def test_calls_fail_in_time_when_the_store_is_stopped(
    server: EmbeddedValkey, ledger: RedisLedger, counts: Counts
) -> None:
    grant = await ledger.reserve(hold_of("team"))
    os.kill(server.pid, signal.SIGSTOP)
    try:
        slow = [await seconds_to_fail(ledger.ping) for _ in range(FAILURES)]
        assert 0.19 <= min(slow) <= IN_TIME_SECONDS
        assert counts.changes == [True, False]
        fast = [await seconds_to_fail(ledger.ping) for _ in range(20)]
        assert min(fast) <= 0.001
        await every_call_fails(ledger, grant, AT_ONCE_SECONDS)
        await anyio.sleep(1.1)  # a probe has found nothing
        assert await seconds_to_fail(ledger.ping) <= AT_ONCE_SECONDS
    finally:
        os.kill(server.pid, signal.SIGCONT)
    await recovered(ledger)
    assert counts.changes == [True, False, True]
    assert await ledger.settle(grant, Usage(1, 1)) is SettleResult.SETTLED


async def test_every_waiting_call_fails_in_time_when_the_store_is_stopped(
    server: EmbeddedValkey, ledger: RedisLedger
) -> None:
    took: list[float] = []

    async def ask() -> None:
        took.append(await seconds_to_fail(lambda: ledger.reserve(hold_of("team"))))

    os.kill(server.pid, signal.SIGSTOP)
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
                await anyio.sleep(0.03)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert len(took) == 20
    assert sorted(took)[-3] <= 0.25  # a busy machine may delay some


async def test_no_call_counts_twice_when_the_store_was_stopped(
    server: EmbeddedValkey, ledger: RedisLedger
) -> None:
    await load_scripts(ledger)
    hold = hold_of("team", 10, 90)
    os.kill(server.pid, signal.SIGSTOP)
    await seconds_to_fail(lambda: ledger.reserve(hold))
    os.kill(server.pid, signal.SIGCONT)
    await recovered(ledger)
    # The store has run the call that nobody waited for.
    assert day_of(await ledger.read("team")) == (0, 100)
    grant = await ledger.reserve(hold)
    assert day_of(await ledger.read("team")) == (0, 100)
    os.kill(server.pid, signal.SIGSTOP)
    await seconds_to_fail(lambda: ledger.settle(grant, Usage(10, 20)))
    os.kill(server.pid, signal.SIGCONT)
    await recovered(ledger)
    assert await ledger.settle(grant, Usage(10, 20)) is SettleResult.DUPLICATE
    assert day_of(await ledger.read("team")) == (30, 0)


async def test_the_ledger_works_again_when_a_killed_store_is_restarted_empty(
    server: EmbeddedValkey, ledger: RedisLedger, counts: Counts
) -> None:
    grant = await ledger.reserve(hold_of("team", 10, 90))
    other = await ledger.reserve(hold_of("team", 10, 90))
    os.kill(server.pid, signal.SIGKILL)
    await server.stop()
    assert await seconds_to_fail(ledger.ping) <= IN_TIME_SECONDS
    await every_call_fails(ledger, grant, IN_TIME_SECONDS)
    await server.start()
    await recovered(ledger)
    assert list(await ledger.renew([Renewal(grant, 64, dispatched=True)])) == [
        RenewalState.HELD
    ]
    assert counts.losses == ["store_lost"]
    assert day_of(await ledger.read("team")) == (0, 100)
    assert await ledger.settle(grant, Usage(10, 20)) is SettleResult.SETTLED
    assert await ledger.settle(other, Usage(10, 5)) is SettleResult.SETTLED
    assert await ledger.settle(other, Usage(10, 5)) is SettleResult.DUPLICATE
    assert day_of(await ledger.read("team")) == (45, 0)


async def test_a_store_that_comes_late_is_found_and_seeded(
    server: EmbeddedValkey, counts: Counts
) -> None:
    await server.stop()
    async with RedisLedger(server.url, observer=counts) as ledger:
        assert await seconds_to_fail(lambda: ledger.seed([TEAM])) <= IN_TIME_SECONDS
        await server.start()
        await recovered(ledger)
        await ledger.reserve(hold_of("team", 10, 90))
        assert day_of(await ledger.read("team")) == (0, 100)
    assert counts.losses == []


async def test_live_reservations_are_held_again_when_the_store_is_flushed(
    ledger: RedisLedger, client: Redis, counts: Counts
) -> None:
    grants = [await ledger.reserve(hold_of("team", 10, 90)) for _ in range(3)]
    await ledger.settle(grants[2], Usage(10, 90))
    client.flushall()
    states = await ledger.renew([
        Renewal(one, 7, dispatched=True) for one in grants[:2]
    ])
    assert list(states) == [RenewalState.HELD] * 2
    assert day_of(await ledger.read("team")) == (0, 200)
    fresh = await ledger.reserve(hold_of("team"))
    assert fresh.epoch != grants[0].epoch
    assert counts.losses == ["store_lost"]
    assert await ledger.settle(grants[0], Usage(10, 10)) is SettleResult.SETTLED
    assert await ledger.release(grants[1]) is SettleResult.RELEASED
    assert day_of(await ledger.read("team")) == (20, 100)


@pytest.mark.parametrize("first_to_ask", [0, 1])
async def test_a_revocation_is_written_again_when_the_store_is_flushed(
    server: EmbeddedValkey, client: Redis, first_to_ask: int
) -> None:
    async with (
        RedisLedger(server.url) as knows,
        RedisLedger(server.url) as knows_nothing,
        RedisLedger(server.url) as operator,
    ):
        for ledger in (knows, knows_nothing):
            await ledger.seed([TEAM])
        await operator.revoke("team")
        with pytest.raises(InvalidApiKey):
            await knows.reserve(hold_of("team"))
        client.flushall()
        if first_to_ask == 1:
            await knows_nothing.reserve(hold_of("team"))
        with pytest.raises(InvalidApiKey):
            await knows.reserve(hold_of("team"))
        with pytest.raises(InvalidApiKey):
            await knows_nothing.reserve(hold_of("team"))
        assert await knows.is_revoked("team")
        assert await operator.restore("team")
        await knows.reserve(hold_of("team"))


async def test_every_known_revocation_is_written_again_when_any_key_is_asked_for(
    server: EmbeddedValkey, client: Redis
) -> None:
    other = Principal("other", "digest")
    async with (
        RedisLedger(server.url) as knows,
        RedisLedger(server.url) as knows_nothing,
    ):
        for ledger in (knows, knows_nothing):
            await ledger.seed([TEAM, other])
        await knows.revoke("team")
        client.flushall()
        await knows.reserve(hold_of("other"))
        with pytest.raises(InvalidApiKey):
            await knows_nothing.reserve(hold_of("team"))


async def test_a_revocation_is_remembered_while_the_key_is_lost(
    ledger: RedisLedger, client: Redis
) -> None:
    await ledger.revoke("team")
    client.flushall()
    assert await ledger.is_revoked("team")
    await ledger.seed([TEAM])
    assert client.hget("sluice:{team}:key", "revoked") == b"1"


async def test_a_full_store_holds_nothing_more_but_ends_what_it_holds(
    ledger: RedisLedger, client: Redis
) -> None:
    grants = [await ledger.reserve(hold_of("team", 10, 90)) for _ in range(2)]
    raw = RawBooks(client, "team")
    before = raw.contents()
    client.config_set("maxmemory", 1)
    await seconds_to_fail(lambda: ledger.reserve(hold_of("team")))
    assert raw.is_still(before)
    assert list(await ledger.renew([Renewal(grants[0], 9, dispatched=True)])) == [
        RenewalState.HELD
    ]
    assert await ledger.settle(grants[0], Usage(10, 20)) is SettleResult.SETTLED
    assert await ledger.release(grants[1]) is SettleResult.RELEASED
    assert day_of(await ledger.read("team")) == (30, 0)
    client.config_set("maxmemory", 0)
    await ledger.reserve(hold_of("team"))


async def test_a_read_only_store_is_no_store(
    ledger: RedisLedger, client: Redis
) -> None:
    grant = await ledger.reserve(hold_of("team", 10, 90))
    client.replicaof("127.0.0.1", "1")
    before = RawBooks(client, "team").contents()
    for call in (
        lambda: ledger.reserve(hold_of("team")),
        lambda: ledger.renew([Renewal(grant, 9, dispatched=True)]),
        lambda: ledger.settle(grant, Usage(1, 1)),
        lambda: ledger.release(grant),
        lambda: ledger.revoke("team"),
    ):
        assert await seconds_to_fail(call) <= IN_TIME_SECONDS
    assert RawBooks(client, "team").is_still(before)
    client.replicaof("NO", "ONE")
    assert await ledger.settle(grant, Usage(1, 1)) is SettleResult.SETTLED


async def test_a_call_counts_once_when_its_reply_is_lost(
    server: EmbeddedValkey, ledger: RedisLedger
) -> None:
    path = server.url.removeprefix("unix://")
    async with SeveredReplies(path) as proxy, RedisLedger(proxy.url) as far:
        await far.seed([TEAM])
        await load_scripts(far)
        hold = hold_of("team", 10, 90)
        proxy.loses_replies = True
        await seconds_to_fail(lambda: far.reserve(hold))
        assert day_of(await ledger.read("team")) == (0, 100)
        proxy.loses_replies = False
        await recovered(far)
        grant = await far.reserve(hold)
        assert day_of(await ledger.read("team")) == (0, 100)
        proxy.loses_replies = True
        await seconds_to_fail(lambda: far.settle(grant, Usage(10, 20)))
        proxy.loses_replies = False
        await recovered(far)
        assert await far.settle(grant, Usage(10, 20)) is SettleResult.DUPLICATE
        assert day_of(await ledger.read("team")) == (30, 0)


async def test_nobody_notices_when_an_idle_connection_is_closed(
    server: EmbeddedValkey, counts: Counts
) -> None:
    path = server.url.removeprefix("unix://")
    async with (
        SeveredReplies(path) as proxy,
        RedisLedger(proxy.url, observer=counts) as ledger,
    ):
        await ledger.ping()
        await proxy.cut()
        await anyio.sleep(0.05)
        await ledger.ping()
    assert counts.changes == [True]


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
async def test_a_reply_counts_when_our_own_loop_was_late(
    ledger: RedisLedger, counts: Counts, turns: int
) -> None:
    await load_scripts(ledger)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ledger.reserve, hold_of("team", 10, 90))
        for _ in range(turns):
            await checkpoint()
        time.sleep(0.3)  # noqa: ASYNC251 # the loop is held up, on purpose
    assert day_of(await ledger.read("team")) == (0, 100)
    assert counts.changes == [True]
