"""What the Redis ledger does beyond the contract, on a store in good health."""

import random
from collections.abc import AsyncIterator, Iterator
from time import monotonic

import anyio
import pytest
from redis import Redis

from gateway.admission.books import key_of
from gateway.admission.ledger import (
    Grant,
    Renewal,
    RenewalState,
    Swept,
    Usage,
)
from gateway.admission.redis_ledger import RedisLedger
from gateway.auth.principal import Limits, Principal
from gateway.errors import QuotaExhausted, RateLimited
from tests.contract.counts import Counts
from tests.contract.desk import Desk, day_of, hold_of, refusal_of
from tests.contract.raw_books import RawBooks

pytestmark = pytest.mark.anyio

AN_HOUR_MS = 3_600_000
A_DAY = 86_400


@pytest.fixture
def desk(redis_desk: Desk) -> Desk:
    return redis_desk


@pytest.fixture
def client(store_url: str) -> Iterator[Redis]:
    with Redis.from_url(store_url) as client:
        yield client


@pytest.fixture
async def hasty(store_url: str) -> AsyncIterator[RedisLedger]:
    """A gateway whose leases last 0.3 s."""
    async with RedisLedger(store_url, lease_seconds=0.3) as ledger:
        yield ledger


async def test_exactly_as_many_are_held_as_fit_when_all_ask_at_once(
    store_url: str, desk: Desk
) -> None:
    key = await desk.key(tokens_per_day=5000)
    held: list[Grant] = []
    refused: list[QuotaExhausted] = []

    async def ask(ledger: RedisLedger) -> None:
        try:
            held.append(await ledger.reserve(hold_of(key, 10, 90)))
        except QuotaExhausted as fault:
            refused.append(fault)

    async with (
        RedisLedger(store_url) as one,
        RedisLedger(store_url) as other,
        anyio.create_task_group() as tasks,
    ):
        for number in range(200):
            tasks.start_soon(ask, one if number % 2 else other)
    assert (len(held), len(refused)) == (50, 150)
    assert day_of(await desk.ledger.read(key)) == (0, 5000)


async def test_sweep_ends_every_lapsed_lease_when_there_are_many(
    desk: Desk, hasty: RedisLedger
) -> None:
    key = await desk.key()
    grants = [await desk.ledger.reserve(hold_of(key)) for _ in range(230)]
    await hasty.renew([Renewal(one, 3, dispatched=True) for one in grants])
    await anyio.sleep(0.31)
    assert await desk.ledger.sweep(key) == Swept(expired=230)
    assert day_of(await desk.ledger.read(key)) == (230 * 13, 0)


async def test_a_lease_lasts_five_seconds_from_its_last_renewal(
    desk: Desk, client: Redis
) -> None:
    key = await desk.key()
    raw = RawBooks(client, key)
    grant = await desk.ledger.reserve(hold_of(key))
    assert raw.scores("leases") == {grant.hold.id: grant.since_ms + 5000}
    await anyio.sleep(0.01)
    await desk.ledger.renew([Renewal(grant, 1, dispatched=True)])
    lease_ends = raw.scores("leases")[grant.hold.id]
    seconds, microseconds = client.time()
    now_ms = seconds * 1000 + microseconds / 1000
    assert grant.since_ms + 5010 <= lease_ends <= now_ms + 5000


@pytest.mark.parametrize("too_short_seconds", [0.005, 0.0])
async def test_waiting_as_long_as_told_admits_and_less_does_not(
    desk: Desk, too_short_seconds: float
) -> None:
    key = await desk.key(tokens_per_minute=60_000)
    started = monotonic()
    await desk.ledger.reserve(hold_of(key, 0, 60_000))
    hold = hold_of(key, 0, 150)
    asked = monotonic()
    fault, _ = await refusal_of(desk.ledger, hold)
    refused = monotonic()
    wait = fault.retry_after_seconds
    assert wait is not None
    assert 0.15 - (refused - started) <= wait <= 0.15
    await anyio.sleep(wait - too_short_seconds)
    # The store's clock decides, so what this clock can say has two edges.
    asked_again = monotonic()
    try:
        await desk.ledger.reserve(hold)
    except RateLimited:
        assert asked_again - refused < wait
    else:
        assert monotonic() - asked >= wait


async def test_the_whole_limit_fits_at_once_and_no_more(desk: Desk) -> None:
    key = await desk.key(requests_per_minute=7, tokens_per_minute=7)
    for left in range(6, -1, -1):
        grant = await desk.ledger.reserve(hold_of(key, 0, 1))
        assert grant.requests is not None
        assert grant.tokens is not None
        assert (grant.requests.remaining, grant.tokens.remaining) == (left, left)
    _, refused = await refusal_of(desk.ledger, hold_of(key, 0, 0))
    assert refused.limit == "requests"


async def test_a_refund_never_fills_a_bucket_beyond_its_brim(desk: Desk) -> None:
    key = await desk.key(tokens_per_minute=60_000)
    lost = await desk.ledger.reserve(hold_of(key, 0, 100))
    await desk.lapse(lost)
    await anyio.sleep(0.11)  # the bucket is full again by itself
    grant = await desk.ledger.reserve(hold_of(key, 0, 60_000))
    assert grant.tokens is not None
    assert grant.tokens.remaining == 0


async def test_large_numbers_keep_all_their_digits(desk: Desk) -> None:
    key = await desk.key(tokens_per_month=9_007_199_254_740_991)
    most = 99_999_999_999_999
    for _ in range(11):
        grant = await desk.ledger.reserve(hold_of(key, 1, most - 1))
        await desk.ledger.settle(grant, Usage(1, most - 1))
    statement = await desk.ledger.read(key)
    assert day_of(statement) == (11 * most, 0)
    assert statement.windows[1].limit == 9_007_199_254_740_991


async def test_every_move_can_be_asked_again_when_scripts_were_flushed(
    desk: Desk, client: Redis
) -> None:
    client.script_flush()
    key = await desk.key()
    for end in (desk.ledger.release, lambda one: desk.ledger.settle(one, Usage(1, 1))):
        client.script_flush()
        grant = await desk.ledger.reserve(hold_of(key))
        client.script_flush()
        assert list(await desk.ledger.renew([Renewal(grant, 1, dispatched=True)])) == [
            RenewalState.HELD
        ]
        client.script_flush()
        await end(grant)
    client.script_flush()
    assert await desk.ledger.sweep(key) == Swept()
    client.script_flush()
    assert day_of(await desk.ledger.read(key)) == (2, 0)


async def test_a_cancelled_caller_takes_nobody_elses_reply(desk: Desk) -> None:
    keys = [await desk.key() for _ in range(20)]
    chance = random.Random(7)
    read: list[bool] = []

    async def read_one(key: str) -> None:
        with anyio.move_on_after(chance.uniform(0, 0.01)):
            statement = await desk.ledger.read(key)
            read.append(statement.principal == key)
        grant = await desk.ledger.reserve(hold_of(key))
        assert grant.hold.principal == key

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            for key in keys:
                tasks.start_soon(read_one, key)
    assert all(read)
    assert len(read) < 400
    for key in keys:
        statement = await desk.ledger.read(key)
        assert statement.in_use == 20
        assert day_of(statement) == (0, 2000)


async def test_calls_of_many_callers_share_one_connection(
    store_url: str, client: Redis
) -> None:
    before = len(client.client_list())
    async with RedisLedger(store_url) as ledger:
        await ledger.seed([Principal("shared", "digest")])
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(ledger.read, "shared")
        assert len(client.client_list()) == before + 1


async def test_reservations_are_listed_up_to_a_hundred(desk: Desk) -> None:
    key = await desk.key()
    for _ in range(103):
        await desk.ledger.reserve(hold_of(key))
    statement = await desk.ledger.read(key)
    assert (statement.in_use, len(statement.reservations)) == (103, 100)


async def test_the_key_is_written_whole(store_url: str, client: Redis) -> None:
    limits = Limits(requests_per_minute=60, max_output_tokens=8192)
    async with RedisLedger(store_url) as ledger:
        await ledger.seed([Principal("whole", "hmac-sha256:0a", ("chat-*",), limits)])
    fields = client.hgetall(key_of("whole"))
    epoch = fields.pop(b"epoch")
    assert len(epoch) == 16
    assert fields == {
        b"digest": b"hmac-sha256:0a",
        b"models": b'["chat-*"]',
        b"requests_per_minute": b"60",
        b"tokens_per_minute": b"",
        b"concurrency": b"",
        b"tokens_per_day": b"",
        b"tokens_per_month": b"",
        b"max_output_tokens": b"8192",
    }
    client.delete(key_of("whole"))


async def test_what_another_gateway_restored_is_not_revoked_by_seeding(
    store_url: str, desk: Desk
) -> None:
    key = await desk.key()
    await desk.ledger.revoke(key)
    async with RedisLedger(store_url) as other:
        await other.restore(key)
    await desk.ledger.seed([Principal(key, "digest")])
    assert not await desk.ledger.is_revoked(key)


async def test_the_observer_is_told_of_calls_and_of_what_they_sweep(
    store_url: str, desk: Desk
) -> None:
    counts = Counts()
    key = await desk.key()
    async with RedisLedger(store_url, observer=counts) as ledger:
        lost = [await ledger.reserve(hold_of(key)) for _ in range(2)]
        await desk.lapsing.renew([Renewal(one, 1, dispatched=True) for one in lost])
        last = await ledger.reserve(hold_of(key))
        await desk.lapse(last)
        assert await ledger.sweep(key) == Swept(released=1)
    assert counts.moves == ["reserve", "reserve", "reserve", "sweep"]
    assert counts.sweeps == [Swept(expired=2)]
    assert (counts.losses, counts.changes) == ([], [True])
