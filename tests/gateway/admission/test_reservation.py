"""One reservation: it is settled whatever happens, and the relay stays behind it."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import override

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.ledger import (
    Grant,
    Hold,
    Renewal,
    RenewalState,
    SettleResult,
    Usage,
)
from gateway.admission.reservation import (
    LEAST_ALLOWANCE,
    PACE_SECONDS,
    Keeper,
    Reservation,
)
from gateway.auth.principal import Limits, Principal
from gateway.errors import InvalidApiKey, QuotaExhausted, StoreUnavailable
from streaming.deadlines import Deadlines, Pulse
from streaming.life import Life
from streaming.testing import ManualClock
from tests.contract.model_ledger import Books, ModelLedger

pytestmark = pytest.mark.anyio

HELD = 10_000
USAGE = Usage(7, 30)


class Store(ModelLedger):
    """A ledger that fails on demand: after the move, as a lost reply does.

    Attributes:
        lost: Calls raise.
        stuck: Calls never return.
    """

    lost = False
    stuck = False

    @override
    async def reserve(self, hold: Hold) -> Grant:
        return await self._reply(await super().reserve(hold))

    @override
    async def renew(self, renewals: Sequence[Renewal]) -> Sequence[RenewalState]:
        return await self._reply(await super().renew(renewals))

    @override
    async def settle(self, grant: Grant, usage: Usage) -> SettleResult:
        return await self._reply(await super().settle(grant, usage))

    @override
    async def release(self, grant: Grant) -> SettleResult:
        return await self._reply(await super().release(grant))

    async def _reply[T](self, answer: T) -> T:
        await anyio.lowlevel.checkpoint()
        if self.stuck:
            await anyio.sleep_forever()
        if self.lost:
            raise StoreUnavailable
        return answer


@dataclass
class Desk(Keeper):
    """A keeper that does nothing by itself, and remembers what it was told."""

    store: Store
    kept: list[Reservation] = field(default_factory=list)
    due: list[bool] = field(default_factory=list)  # whether at once
    postponed: list[Usage | None] = field(default_factory=list)
    counted: list[SettleResult] = field(default_factory=list)

    @property
    @override
    def ledger(self) -> Store:
        return self.store

    @override
    def keep(self, reservation: Reservation) -> None:
        self.kept.append(reservation)

    @override
    def drop(self, reservation: Reservation) -> None:
        self.kept = [one for one in self.kept if one is not reservation]

    @override
    def renew(self, reservation: Reservation, *, at_once: bool) -> None:
        self.due.append(at_once)

    @override
    def postpone(self, grant: Grant, usage: Usage | None) -> None:
        self.postponed.append(usage)

    @override
    def count(self, result: SettleResult) -> None:
        self.counted.append(result)


class Rig:
    """A reservation with everything around it.

    Attributes:
        state: Of the reservation, as the store has it; None if it is unknown there.
        allowed: Tokens the store knows may be relayed.
    """

    def __init__(self, held: int = HELD) -> None:
        self.clock = ManualClock()
        self.books = Books(self.clock)
        self.store = Store(self.books)
        self.desk = Desk(self.store)
        self.life = Life(Pulse(Deadlines(), 0.0))
        self.reservation = Reservation(self.desk, self.life, self.clock)
        self._hold = Hold("r", "team", "m", 7, held, stream=True)

    async def hold(self) -> None:
        await self.reservation.hold(self._hold)

    @asynccontextmanager
    async def held(
        self, charge: Callable[[], Usage | None] | None = None
    ) -> AsyncIterator[Reservation]:
        """The reservation, held; dispatched, too, if there is something to charge."""
        await self.store.seed([Principal("team", "digest")])
        async with self.reservation:
            await self.hold()
            if charge is not None:
                self.reservation.charge_by(charge)
                self.reservation.dispatch()
            yield self.reservation

    async def renew(self) -> None:
        """One heartbeat."""
        renewal = self.reservation.renewal()
        (state,) = await self.store.renew([renewal])
        self.reservation.renewed(renewal, state)

    @property
    def state(self) -> str | None:
        record = self.books.accounts["team"].records.get("r")
        return None if record is None else record.state

    @property
    def charged(self) -> int:
        return self.books.accounts["team"].records["r"].charged

    @property
    def allowed(self) -> int:
        return self.books.accounts["team"].records["r"].allowed


def nothing() -> None:
    return None


def usage() -> Usage:
    return USAGE


async def passes(reservation: Reservation, tokens: int) -> bool:
    """Whether these tokens may be relayed without waiting."""
    with anyio.move_on_after(0) as scope:
        await reservation.pass_to(tokens)
    return not scope.cancelled_caught


# What becomes of it.


async def test_reservation_leaves_no_trace_when_it_was_never_held() -> None:
    rig = Rig()
    async with rig.reservation:
        pass
    assert (rig.desk.counted, rig.desk.postponed) == ([], [])


async def test_reservation_leaves_no_trace_when_it_was_refused() -> None:
    rig = Rig()
    await rig.store.seed([Principal("team", "d", limits=Limits(tokens_per_day=1))])
    async with rig.reservation:
        with pytest.raises(QuotaExhausted):
            await rig.hold()
    assert (rig.state, rig.desk.counted, rig.desk.kept) == (None, [], [])
    assert not rig.reservation.was_held


async def test_reservation_is_released_when_nothing_was_dispatched() -> None:
    rig = Rig()
    async with rig.held():
        assert rig.state == "held"
        assert rig.desk.kept == [rig.reservation]
    assert (rig.state, rig.desk.kept) == ("released", [])
    assert rig.desk.counted == [SettleResult.RELEASED]


async def test_reservation_is_released_when_there_is_nothing_to_charge() -> None:
    rig = Rig()
    async with rig.held(nothing):
        pass
    assert rig.state == "released"


async def test_reservation_is_released_when_it_reached_no_provider() -> None:
    rig = Rig()
    async with rig.held() as reservation:
        reservation.charge_by(usage)
    assert rig.state == "released"


async def test_reservation_is_settled_when_there_is_something_to_charge() -> None:
    rig = Rig()
    async with rig.held(usage):
        pass
    assert (rig.state, rig.charged) == ("settled", USAGE.total)
    assert rig.desk.counted == [SettleResult.SETTLED]


async def test_reservation_is_settled_when_its_exchange_is_cancelled() -> None:
    rig = Rig()
    with anyio.CancelScope() as scope:
        async with rig.held(usage):
            scope.cancel()
            await anyio.sleep_forever()
    assert (rig.state, rig.charged) == ("settled", USAGE.total)


async def test_reservation_is_released_when_it_was_cancelled_while_reserving() -> None:
    rig = Rig()
    await rig.store.seed([Principal("team", "digest")])
    async with rig.reservation:
        rig.store.stuck = True
        with anyio.move_on_after(0):
            await rig.hold()
        rig.store.stuck = False
        assert rig.state == "held"  # though nobody has heard of it
    assert rig.state == "released"


async def test_reservation_is_released_when_the_stores_reply_was_lost() -> None:
    rig = Rig()
    await rig.store.seed([Principal("team", "digest")])
    async with rig.reservation:
        rig.store.lost = True
        with pytest.raises(StoreUnavailable):
            await rig.hold()
        rig.store.lost = False
    assert rig.state == "released"


@pytest.mark.parametrize(("charge", "later"), [(usage, USAGE), (nothing, None)])
async def test_settlement_waits_in_the_backlog_when_the_store_is_lost(
    charge: Callable[[], Usage | None], later: Usage | None
) -> None:
    rig = Rig()
    async with rig.held(charge):
        rig.store.lost = True
    assert (rig.desk.counted, rig.desk.postponed) == ([], [later])


async def test_settlement_waits_in_the_backlog_when_the_store_is_slow() -> None:
    rig = Rig()
    with anyio.fail_after(5):
        async with rig.held(usage):
            rig.store.stuck = True
    assert (rig.desk.counted, rig.desk.postponed) == ([], [USAGE])


# The gate before the relay.


async def test_gate_is_shut_until_the_ledger_knows_of_the_dispatch() -> None:
    rig = Rig()
    async with rig.held(usage) as reservation:
        assert rig.desk.due == [True]
        assert reservation.quiet_to == -1
        assert not await passes(reservation, 0)
        await rig.renew()
        assert await passes(reservation, LEAST_ALLOWANCE)
    assert rig.allowed == LEAST_ALLOWANCE


async def test_renewal_is_asked_for_when_three_quarters_are_used() -> None:
    rig = Rig()
    async with rig.held(usage) as reservation:
        await rig.renew()
        quiet_to = LEAST_ALLOWANCE * 3 // 4
        assert reservation.quiet_to == quiet_to
        assert await passes(reservation, quiet_to)
        assert rig.desk.due == [True]  # the dispatch mark's
        assert await passes(reservation, quiet_to + 1)
        assert rig.desk.due == [True, False]
        assert reservation.renewal().allowed == quiet_to + 1 + LEAST_ALLOWANCE


async def test_heartbeat_brings_a_new_allowance_when_progress_is_known() -> None:
    rig = Rig()
    progress = 0
    async with rig.held(usage) as reservation:
        reservation.charge_by(usage, lambda: progress)
        await rig.renew()
        assert not reservation.is_half_used
        progress = 40
        assert reservation.is_half_used
        await rig.renew()
        assert rig.allowed == progress + LEAST_ALLOWANCE
        assert reservation.quiet_to == progress + LEAST_ALLOWANCE * 3 // 4
        assert rig.desk.due == [True]  # nothing but the dispatch mark's


async def test_relay_waits_when_the_last_quarter_is_used_before_the_answer() -> None:
    rig = Rig()
    async with rig.held(usage) as reservation:
        await rig.renew()
        assert await passes(reservation, LEAST_ALLOWANCE)
        assert reservation.quiet_to <= rig.allowed
        assert not await passes(reservation, LEAST_ALLOWANCE + 1)
        await rig.renew()
        assert await passes(reservation, LEAST_ALLOWANCE + 1)


@given(sizes=st.lists(st.integers(1, 200), max_size=30), seconds=st.floats(0, 0.2))
async def test_relay_is_never_ahead_of_the_ledger(
    sizes: list[int], seconds: float
) -> None:
    rig = Rig()
    async with rig.held(usage) as reservation:
        relayed = 0
        for size in sizes:
            rig.clock.move(seconds)
            relayed += size
            while relayed > reservation.quiet_to and not await passes(
                reservation, relayed
            ):
                await rig.renew()  # as late as can be
            assert relayed <= rig.allowed


async def test_allowance_grows_with_the_pace_of_the_stream() -> None:
    rig = Rig()
    async with rig.held(usage) as reservation:
        await rig.renew()
        for relayed in range(0, 5000, 900):  # 5000 tokens a second
            await passes(reservation, relayed)
            await rig.renew()
            rig.clock.move(0.18)
        assert rig.allowed == pytest.approx(4500 + 5000 * PACE_SECONDS, abs=1)


async def test_event_larger_than_the_allowance_is_written_ahead_whole() -> None:
    rig = Rig()
    async with rig.held(usage) as reservation:
        await rig.renew()
        assert not await passes(reservation, 3000)
        await rig.renew()
        assert await passes(reservation, 3000)


async def test_allowance_ends_with_what_is_held() -> None:
    rig = Rig(held=100)
    async with rig.held(usage) as reservation:
        await rig.renew()
        assert await passes(reservation, 60)
        await rig.renew()
        assert (rig.allowed, reservation.quiet_to) == (100, 100)
        assert not await passes(reservation, 101)  # the provider went beyond
        await rig.renew()
        assert await passes(reservation, 101)


async def test_life_ends_when_the_key_is_revoked() -> None:
    rig = Rig()
    async with rig.held(usage):
        await rig.store.revoke("team")
        await rig.renew()
    assert isinstance(rig.life.cause, InvalidApiKey)
    assert rig.charged == USAGE.total


async def test_relay_goes_on_to_what_is_held_when_the_store_is_lost() -> None:
    rig = Rig(held=100)
    async with rig.held(usage) as reservation:
        await rig.renew()
        for relayed in (90, 100, 2 * 100 + LEAST_ALLOWANCE):
            await passes(reservation, relayed)
            reservation.store_lost()
            assert await passes(reservation, relayed)
        assert rig.life.cause is None
        await passes(reservation, 2 * 100 + LEAST_ALLOWANCE + 1)
        reservation.store_lost()
        assert isinstance(rig.life.cause, QuotaExhausted)


async def test_gate_stays_shut_when_the_store_is_lost_before_the_dispatch() -> None:
    rig = Rig()
    async with rig.held() as reservation:
        reservation.store_lost()
        assert reservation.quiet_to == -1
