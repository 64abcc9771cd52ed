"""Windows, tombstones and time-outs of the books as they lie in the store."""

from collections.abc import Iterator
from copy import replace

import pytest
from redis import Redis

from gateway.admission.books import calendar_at
from gateway.admission.ledger import (
    Grant,
    Renewal,
    RenewalState,
    SettleResult,
    Usage,
)
from gateway.admission.redis_ledger import RedisLedger
from gateway.errors import QuotaExhausted
from tests.contract.desk import Desk, day_of, hold_of
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


@pytest.mark.parametrize(
    ("day_shift", "month_shift"), [(-1, 0), (1, 0), (0, -1), (0, 1), (-400, -13)]
)
async def test_wrong_windows_change_nothing_and_are_put_right(
    store_url: str, desk: Desk, client: Redis, day_shift: int, month_shift: int
) -> None:
    key = await desk.key(tokens_per_day=100)
    grant = await desk.ledger.reserve(hold_of(key, 10, 40))
    before = RawBooks(client, key).contents()
    now = calendar_at(grant.since_ms // 1000)
    wrong = replace(
        now,
        day=calendar_at(now.day_ends - 1 + day_shift * A_DAY).day,
        month=calendar_at(now.month_starts + month_shift * 31 * A_DAY).month,
        day_ends=now.day_ends + day_shift * A_DAY,
        month_starts=now.month_starts + month_shift * 31 * A_DAY,
        month_ends=now.month_ends + month_shift * 31 * A_DAY,
    )
    async with RedisLedger(store_url) as late:
        late._calendar = wrong
        with pytest.raises(QuotaExhausted):
            await late.reserve(hold_of(key, 10, 90))
        assert RawBooks(client, key).is_still(before)
        late._calendar = wrong
        late._arguments.clear()
        assert await late.settle(grant, Usage(1, 1)) is SettleResult.SETTLED
    assert day_of(await desk.ledger.read(key)) == (2, 0)


def _of_other_days(grant: Grant, day: str, month: str) -> Grant:
    # Another epoch: the store takes it for one it has lost, and holds it again.
    hold = hold_of(grant.hold.principal, 10, 90)
    return replace(grant, hold=hold, day=day, month=month, epoch="before")


async def test_what_was_held_before_midnight_is_charged_to_the_day_before(
    desk: Desk, client: Redis
) -> None:
    key = await desk.key(tokens_per_day=100, tokens_per_month=100)
    seconds, _ = client.time()
    now = calendar_at(seconds)
    grant = await desk.ledger.reserve(hold_of(key, 0, 0))
    older = _of_other_days(grant, now.yesterday, now.last_month)
    assert list(await desk.ledger.renew([Renewal(older, 1, dispatched=True)])) == [
        RenewalState.HELD
    ]
    raw = RawBooks(client, key)
    yesterday, last_month = (
        raw.window("day", older.day),
        raw.window("month", older.month),
    )
    assert raw.windows()[yesterday] == raw.windows()[last_month] == (0, 100)
    await desk.ledger.settle(older, Usage(10, 20))
    assert raw.windows()[yesterday] == raw.windows()[last_month] == (30, 0)
    assert day_of(await desk.ledger.read(key)) == (0, 0)
    assert raw.without_ttl() == []


async def test_windows_that_are_gone_are_not_made_again(
    desk: Desk, client: Redis
) -> None:
    key = await desk.key()
    grant = await desk.ledger.reserve(hold_of(key))
    raw = RawBooks(client, key)
    client.delete(*raw.windows())
    assert await desk.ledger.settle(grant, Usage(1, 1)) is SettleResult.SETTLED
    assert raw.windows() == {}
    older = await desk.ledger.reserve(hold_of(key, 10, 90))
    client.delete(*raw.windows())
    await desk.ledger.reserve(hold_of(key, 1, 9))
    await desk.ledger.settle(older, Usage(1, 1))
    assert day_of(await desk.ledger.read(key)) == (2, 0)  # not less than nothing
    client.delete(*raw.windows())
    ancient = _of_other_days(grant, "20200101", "202001")
    await desk.ledger.renew([Renewal(ancient, 1, dispatched=True)])
    assert await desk.ledger.settle(ancient, Usage(1, 1)) is SettleResult.SETTLED
    assert raw.windows() == {}


async def test_books_never_stay_forever(desk: Desk, client: Redis) -> None:
    key = await desk.key(requests_per_minute=60, tokens_per_minute=6000)
    raw = RawBooks(client, key)
    grants = [await desk.ledger.reserve(hold_of(key)) for _ in range(3)]
    await desk.ledger.renew([Renewal(grants[0], 1, dispatched=True)])
    await desk.ledger.settle(grants[1], Usage(1, 1))
    await desk.lapse(grants[2], dispatched=True)
    await desk.ledger.sweep(key)
    assert len(raw.keys()) == 7
    assert raw.without_ttl() == []


async def test_tombstones_go_when_their_time_is_over(desk: Desk, client: Redis) -> None:
    key = await desk.key()
    raw = RawBooks(client, key)
    settled = await desk.ledger.reserve(hold_of(key))
    await desk.ledger.settle(settled, Usage(1, 1))
    swept = await desk.ledger.reserve(hold_of(key))
    await desk.lapse(swept)
    await desk.ledger.sweep(key)
    graves = raw.scores("graves")
    seconds, _ = client.time()
    now_ms = seconds * 1000
    assert graves[settled.hold.id] == pytest.approx(now_ms + 600_000, abs=2000)
    assert graves[swept.hold.id] == pytest.approx(now_ms + AN_HOUR_MS, abs=2000)
    raw.age("graves", AN_HOUR_MS + 2000)
    await desk.ledger.sweep(key)
    assert raw.scores("graves") == {}
    assert raw.records() == set()


async def test_an_old_reservation_without_a_tombstone_is_over(
    desk: Desk, client: Redis
) -> None:
    key = await desk.key()
    grant = await desk.ledger.reserve(hold_of(key))
    await desk.ledger.settle(grant, Usage(1, 1))
    raw = RawBooks(client, key)
    raw.age("graves", AN_HOUR_MS)
    await desk.ledger.sweep(key)
    old = replace(grant, since_ms=grant.since_ms - 600_001)
    assert await desk.ledger.settle(old, Usage(5, 5)) is SettleResult.DUPLICATE
    assert await desk.ledger.release(old) is SettleResult.DUPLICATE
    (state,) = await desk.ledger.renew([Renewal(old, 1, dispatched=True)])
    assert state is RenewalState.GONE
    assert day_of(await desk.ledger.read(key)) == (2, 0)
    lost = replace(old, epoch="before")
    assert await desk.ledger.settle(lost, Usage(5, 5)) is SettleResult.SETTLED
    assert day_of(await desk.ledger.read(key)) == (12, 0)


async def test_a_young_reservation_that_the_store_forgot_is_held_again(
    desk: Desk, client: Redis
) -> None:
    # What a fail-over does that had not replicated the last writes.
    key = await desk.key(tokens_per_minute=600)
    grant = await desk.ledger.reserve(hold_of(key, 10, 90))
    client.delete(*RawBooks(client, key).keys())
    (state,) = await desk.ledger.renew([Renewal(grant, 1, dispatched=True)])
    assert state is RenewalState.HELD
    statement = await desk.ledger.read(key)
    assert day_of(statement) == (0, 100)
    assert statement.tokens is not None
    assert statement.tokens.remaining == 500
    client.delete(*RawBooks(client, key).keys())
    assert await desk.ledger.settle(grant, Usage(1, 1)) is SettleResult.SETTLED
    assert await desk.ledger.settle(grant, Usage(1, 1)) is SettleResult.DUPLICATE
    assert day_of(await desk.ledger.read(key)) == (2, 0)
