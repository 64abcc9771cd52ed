"""What any ledger must do: one suite, run on each of them (``test_ledgers.py``)."""

import pytest

from gateway.admission.ledger import (
    Renewal,
    RenewalState,
    SettleResult,
    Swept,
    Usage,
)
from gateway.auth.principal import Limits, Principal
from gateway.errors import (
    ConcurrencyExceeded,
    InvalidApiKey,
    QuotaExhausted,
    RateLimited,
)
from streaming.errors import Fault, LocalFault
from tests.contract.desk import Desk, day_of, hold_of, refusal_of


@pytest.mark.anyio
class LedgerContract:
    """Subclass it and give the fixture ``desk``."""

    async def test_reserve_holds_prompt_and_completion(self, desk: Desk) -> None:
        key = await desk.key(tokens_per_day=1000)
        grant = await desk.ledger.reserve(hold := hold_of(key, 10, 90))
        statement = await desk.ledger.read(key)
        assert grant.hold == hold
        assert day_of(statement) == (0, 100)
        assert statement.in_use == 1
        (reservation,) = statement.reservations
        assert (reservation.id, reservation.model) == (hold.id, "chat-small")
        assert (reservation.reserved, reservation.progress) == (100, 0)

    async def test_reserve_holds_once_when_repeated(self, desk: Desk) -> None:
        key = await desk.key(requests_per_minute=10, tokens_per_minute=600)
        hold = hold_of(key)
        first = await desk.ledger.reserve(hold)
        again = await desk.ledger.reserve(hold)
        assert (again.hold, again.epoch) == (first.hold, first.epoch)
        assert (again.day, again.month) == (first.day, first.month)
        statement = await desk.ledger.read(key)
        assert day_of(statement) == (0, 100)
        assert statement.requests is not None
        assert statement.requests.remaining == 9

    async def test_reserve_is_a_fault_when_the_id_is_spent(self, desk: Desk) -> None:
        key = await desk.key()
        grant = await desk.ledger.reserve(hold_of(key))
        await desk.ledger.release(grant)
        with pytest.raises(LocalFault):
            await desk.ledger.reserve(grant.hold)
        assert day_of(await desk.ledger.read(key)) == (0, 0)

    async def test_reserve_refuses_keys_never_seeded(self, desk: Desk) -> None:
        with pytest.raises(InvalidApiKey):
            await desk.ledger.reserve(hold_of("nobody"))
        with pytest.raises(InvalidApiKey):
            await desk.ledger.read("nobody")

    async def test_grant_tells_the_rates_as_they_stand(self, desk: Desk) -> None:
        key = await desk.key(requests_per_minute=7, tokens_per_minute=700)
        grant = await desk.ledger.reserve(hold_of(key, 10, 90))
        assert grant.requests is not None
        assert (grant.requests.limit, grant.requests.remaining) == (7, 6)
        assert grant.requests.reset_seconds == pytest.approx(60 / 7, abs=0.1)
        assert grant.tokens is not None
        assert (grant.tokens.limit, grant.tokens.remaining) == (700, 600)
        assert grant.tokens.reset_seconds == pytest.approx(60 / 7, abs=0.1)

    async def test_unlimited_keys_have_no_rates(self, desk: Desk) -> None:
        key = await desk.key()
        grant = await desk.ledger.reserve(hold_of(key, 10**9, 10**9))
        statement = await desk.ledger.read(key)
        assert (grant.requests, grant.tokens) == (None, None)
        assert (statement.requests, statement.tokens) == (None, None)
        assert statement.concurrency_limit is None
        assert [window.limit for window in statement.windows] == [None, None]
        assert day_of(statement) == (0, 2 * 10**9)

    @pytest.mark.parametrize(
        ("limits", "first", "fault", "should_retry"),
        [
            ({"tokens_per_day": 199}, "day", QuotaExhausted, False),
            ({"tokens_per_month": 199}, "month", QuotaExhausted, False),
            ({"concurrency": 1}, "concurrency", ConcurrencyExceeded, True),
            ({"requests_per_minute": 1}, "requests", RateLimited, True),
            ({"tokens_per_minute": 199}, "tokens", RateLimited, True),
        ],
    )
    async def test_reserve_refuses_the_second_when_a_limit_fits_one(
        self,
        desk: Desk,
        limits: dict[str, int],
        first: str,
        fault: type[Fault],
        should_retry: bool,
    ) -> None:
        key = await desk.key(**limits)
        await desk.ledger.reserve(hold_of(key, 10, 90))
        before = await desk.ledger.read(key)
        caught, refused = await refusal_of(desk.ledger, hold_of(key, 10, 90))
        assert isinstance(caught, fault)
        assert refused.limit == first
        assert caught.should_retry is should_retry
        assert caught.retry_after_seconds is not None
        assert caught.retry_after_seconds > 0
        after = await desk.ledger.read(key)
        assert (after.windows, after.in_use) == (before.windows, before.in_use)

    async def test_the_first_limit_in_order_is_named_when_all_refuse(
        self, desk: Desk
    ) -> None:
        order = {
            "tokens_per_day": "day",
            "tokens_per_month": "month",
            "concurrency": "concurrency",
            "requests_per_minute": "requests",
            "tokens_per_minute": "tokens",
        }
        tight = {"concurrency": 1, "requests_per_minute": 1}
        limits = {name: tight.get(name, 100) for name in order}
        while limits:
            key = await desk.key(**limits)
            await desk.ledger.reserve(hold_of(key, 10, 90))
            _, refused = await refusal_of(desk.ledger, hold_of(key, 10, 90))
            first = next(iter(limits))
            assert refused.limit == order[first]
            del limits[first]

    async def test_a_refusal_tells_the_rates(self, desk: Desk) -> None:
        key = await desk.key(
            concurrency=1, requests_per_minute=7, tokens_per_minute=700
        )
        await desk.ledger.reserve(hold_of(key, 10, 90))
        _, refused = await refusal_of(desk.ledger, hold_of(key))
        assert refused.requests is not None
        assert refused.tokens is not None
        assert (refused.requests.remaining, refused.tokens.remaining) == (6, 600)

    async def test_a_request_larger_than_the_limit_is_not_to_be_retried(
        self, desk: Desk
    ) -> None:
        key = await desk.key(tokens_per_minute=99)
        caught, _ = await refusal_of(desk.ledger, hold_of(key, 10, 90))
        assert not caught.should_retry

    async def test_settle_charges_what_was_used(self, desk: Desk) -> None:
        key = await desk.key(requests_per_minute=6, tokens_per_minute=600)
        grant = await desk.ledger.reserve(hold_of(key, 10, 90))
        assert await desk.ledger.settle(grant, Usage(10, 30)) is SettleResult.SETTLED
        statement = await desk.ledger.read(key)
        assert day_of(statement) == (40, 0)
        assert (statement.in_use, statement.reservations) == (0, ())
        assert statement.requests is not None
        assert statement.requests.remaining == 5  # a request is not given back
        assert statement.tokens is not None
        assert statement.tokens.remaining == 560

    async def test_settle_charges_more_than_was_held_when_overrun(
        self, desk: Desk
    ) -> None:
        key = await desk.key(tokens_per_minute=600)
        grant = await desk.ledger.reserve(hold_of(key, 10, 90))
        assert await desk.ledger.settle(grant, Usage(10, 290)) is SettleResult.SETTLED
        statement = await desk.ledger.read(key)
        assert day_of(statement) == (300, 0)
        assert statement.tokens is not None
        assert statement.tokens.remaining == 300

    async def test_release_gives_all_back_but_the_request(self, desk: Desk) -> None:
        key = await desk.key(requests_per_minute=6, tokens_per_minute=600)
        grant = await desk.ledger.reserve(hold_of(key))
        assert await desk.ledger.release(grant) is SettleResult.RELEASED
        statement = await desk.ledger.read(key)
        assert day_of(statement) == (0, 0)
        assert statement.requests is not None
        assert statement.requests.remaining == 5
        assert statement.tokens is not None
        assert statement.tokens.remaining == 600

    @pytest.mark.parametrize("first", ["settle", "release"])
    @pytest.mark.parametrize("second", ["settle", "release"])
    async def test_a_second_end_changes_nothing(
        self, desk: Desk, first: str, second: str
    ) -> None:
        key = await desk.key()
        ledger = desk.ledger
        grant = await ledger.reserve(hold_of(key))

        async def end(how: str, used: int) -> SettleResult:
            if how == "settle":
                return await ledger.settle(grant, Usage(used, 0))
            return await ledger.release(grant)

        await end(first, 7)
        statement = await ledger.read(key)
        assert await end(second, 8) is SettleResult.DUPLICATE
        assert await ledger.read(key) == statement

    async def test_renew_keeps_the_largest_allowance_and_the_mark(
        self, desk: Desk
    ) -> None:
        key = await desk.key()
        grant = await desk.ledger.reserve(hold_of(key, 10, 90))
        await desk.ledger.renew([Renewal(grant, 70, dispatched=True, progress=6)])
        await desk.ledger.renew([Renewal(grant, 5, dispatched=False, progress=2)])
        (reservation,) = (await desk.ledger.read(key)).reservations
        assert reservation.progress == 6
        await desk.lapse(grant)
        assert await desk.ledger.sweep(key) == Swept(expired=1)
        assert day_of(await desk.ledger.read(key)) == (80, 0)

    async def test_renew_answers_each_in_order(self, desk: Desk) -> None:
        keys = [await desk.key(), await desk.key()]
        grants = [await desk.ledger.reserve(hold_of(keys[n % 2])) for n in range(205)]
        ended = set(range(0, 205, 7))
        for n in ended:
            await desk.ledger.release(grants[n])
        states = await desk.ledger.renew([Renewal(one, 1, True) for one in grants])
        assert list(states) == [
            RenewalState.GONE if n in ended else RenewalState.HELD for n in range(205)
        ]

    async def test_renew_has_nothing_to_do_when_nothing_is_live(
        self, desk: Desk
    ) -> None:
        assert list(await desk.ledger.renew([])) == []

    async def test_renew_saves_a_lease_that_nobody_has_swept(self, desk: Desk) -> None:
        key = await desk.key()
        grant = await desk.ledger.reserve(hold_of(key))
        await desk.lapse(grant)
        (state,) = await desk.ledger.renew([Renewal(grant, 1, dispatched=True)])
        assert state is RenewalState.HELD
        assert await desk.ledger.sweep(key) == Swept()
        assert day_of(await desk.ledger.read(key)) == (0, 100)
        assert await desk.ledger.settle(grant, Usage(1, 1)) is SettleResult.SETTLED

    @pytest.mark.parametrize(
        ("stream", "dispatched", "allowed", "charged"),
        [
            (True, False, 0, 0),
            (True, False, 70, 0),
            (True, True, 0, 10),
            (True, True, 70, 80),
            (False, False, 0, 0),
            (False, True, 0, 10),
            (False, True, 70, 74),
        ],
    )
    async def test_sweep_charges_what_may_have_been_relayed(
        self, desk: Desk, stream: bool, dispatched: bool, allowed: int, charged: int
    ) -> None:
        key = await desk.key(tokens_per_minute=600)
        grant = await desk.ledger.reserve(hold_of(key, 10, 90, stream=stream))
        await desk.lapse(grant, allowed=allowed, dispatched=dispatched)
        swept = await desk.ledger.sweep(key)
        assert (swept.expired, swept.released) == (dispatched, not dispatched)
        statement = await desk.ledger.read(key)
        assert day_of(statement) == (charged, 0)
        assert statement.in_use == 0
        assert statement.tokens is not None
        assert statement.tokens.remaining == 600 - charged
        assert await desk.ledger.sweep(key) == Swept()
        (state,) = await desk.ledger.renew([Renewal(grant, 1, dispatched=True)])
        assert state is RenewalState.GONE

    async def test_every_move_sweeps_on_the_way(self, desk: Desk) -> None:
        key = await desk.key()
        other = await desk.ledger.reserve(hold_of(key))
        for move in (
            lambda: desk.ledger.reserve(hold_of(key)),
            lambda: desk.ledger.renew([Renewal(other, 1, dispatched=True)]),
            lambda: desk.ledger.read(key),
            lambda: desk.ledger.settle(other, Usage(1, 1)),
            lambda: desk.ledger.release(other),
        ):
            lost = await desk.ledger.reserve(hold_of(key))
            await desk.lapse(lost)
            await move()
            assert await desk.ledger.sweep(key) == Swept()
            (state,) = await desk.ledger.renew([Renewal(lost, 1, dispatched=True)])
            assert state is RenewalState.GONE

    async def test_reserve_takes_the_place_of_a_lapsed_lease(self, desk: Desk) -> None:
        key = await desk.key(concurrency=1, tokens_per_day=100)
        await desk.lapse(await desk.ledger.reserve(hold_of(key, 10, 90)))
        await desk.ledger.reserve(hold_of(key, 10, 90))
        assert day_of(await desk.ledger.read(key)) == (0, 100)

    @pytest.mark.parametrize("dispatched", [True, False])
    async def test_a_late_settlement_corrects_a_sweep_once(
        self, desk: Desk, dispatched: bool
    ) -> None:
        key = await desk.key(tokens_per_minute=600)
        grant = await desk.ledger.reserve(hold_of(key, 10, 90))
        await desk.lapse(grant, allowed=64, dispatched=dispatched)
        await desk.ledger.sweep(key)
        assert await desk.ledger.settle(grant, Usage(12, 20)) is SettleResult.LATE
        statement = await desk.ledger.read(key)
        assert day_of(statement) == (32, 0)
        assert statement.tokens is not None
        assert statement.tokens.remaining == 568
        again = await desk.ledger.settle(grant, Usage(12, 90))
        assert again is SettleResult.DUPLICATE
        assert day_of(await desk.ledger.read(key)) == (32, 0)

    async def test_a_late_release_gives_back_what_a_sweep_charged(
        self, desk: Desk
    ) -> None:
        key = await desk.key()
        grant = await desk.ledger.reserve(hold_of(key))
        await desk.lapse(grant, allowed=64, dispatched=True)
        await desk.ledger.sweep(key)
        assert await desk.ledger.release(grant) is SettleResult.LATE
        assert day_of(await desk.ledger.read(key)) == (0, 0)

    async def test_settle_is_not_late_when_nobody_has_swept(self, desk: Desk) -> None:
        key = await desk.key()
        grant = await desk.ledger.reserve(hold_of(key))
        await desk.lapse(grant, allowed=64, dispatched=True)
        assert await desk.ledger.settle(grant, Usage(10, 20)) is SettleResult.SETTLED

    async def test_a_revoked_key_is_refused_and_its_streams_told(
        self, desk: Desk
    ) -> None:
        key = await desk.key()
        grant = await desk.ledger.reserve(hold_of(key))
        assert not await desk.ledger.is_revoked(key)
        assert await desk.ledger.revoke(key)
        assert await desk.ledger.is_revoked(key)
        with pytest.raises(InvalidApiKey):
            await desk.ledger.reserve(hold_of(key))
        with pytest.raises(InvalidApiKey):
            await desk.ledger.reserve(grant.hold)
        (state,) = await desk.ledger.renew([Renewal(grant, 1, dispatched=True)])
        assert state is RenewalState.REVOKED
        statement = await desk.ledger.read(key)
        assert statement.revoked
        assert day_of(statement) == (0, 100)
        assert await desk.ledger.settle(grant, Usage(10, 5)) is SettleResult.SETTLED

    async def test_seeding_again_never_lifts_a_revocation(self, desk: Desk) -> None:
        key = await desk.key()
        await desk.ledger.revoke(key)
        await desk.ledger.seed([Principal(key, "digest")])
        assert await desk.ledger.is_revoked(key)
        with pytest.raises(InvalidApiKey):
            await desk.ledger.reserve(hold_of(key))

    async def test_restore_lifts_a_revocation(self, desk: Desk) -> None:
        key = await desk.key()
        await desk.ledger.revoke(key)
        assert await desk.ledger.restore(key)
        assert not await desk.ledger.is_revoked(key)
        await desk.ledger.reserve(hold_of(key))

    async def test_unknown_keys_are_neither_revoked_nor_restored(
        self, desk: Desk
    ) -> None:
        assert not await desk.ledger.revoke("nobody")
        assert not await desk.ledger.restore("nobody")
        assert not await desk.ledger.is_revoked("nobody")

    async def test_new_limits_hold_at_once_when_seeded_again(self, desk: Desk) -> None:
        key = await desk.key(tokens_per_day=100, concurrency=1)
        grant = await desk.ledger.reserve(hold_of(key, 10, 90))
        await desk.ledger.seed([
            Principal(key, "digest", limits=Limits(tokens_per_day=150))
        ])
        _, refused = await refusal_of(desk.ledger, hold_of(key, 10, 90))
        assert refused.limit == "day"
        await desk.ledger.reserve(hold_of(key, 10, 40))
        assert await desk.ledger.release(grant) is SettleResult.RELEASED
        assert day_of(await desk.ledger.read(key)) == (0, 50)

    async def test_ping_answers(self, desk: Desk) -> None:
        await desk.ledger.ping()
