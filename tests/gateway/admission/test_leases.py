"""The lease keeper: what it renews, when, and what it does when the store is lost."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import override

import anyio
import pytest

from gateway.admission.leases import GATHER_SECONDS, HEARTBEAT_SECONDS, LeaseKeeper
from gateway.admission.ledger import (
    LEASE_SECONDS,
    Grant,
    Hold,
    Renewal,
    RenewalState,
    SettleResult,
    Swept,
    Usage,
)
from gateway.admission.reservation import LEAST_ALLOWANCE, Reservation
from gateway.auth.principal import Principal
from gateway.errors import StoreUnavailable
from streaming.deadlines import Deadlines, Pulse
from streaming.life import Life
from streaming.testing import ManualClock
from tests.contract.model_ledger import Books, ModelLedger

pytestmark = pytest.mark.anyio

USAGE = Usage(7, 30)


class Store(ModelLedger):
    """A ledger that can be lost, and remembers its renewals.

    Attributes:
        lost: Calls raise.
        renewed: Ids of each call.
    """

    def __init__(self, books: Books) -> None:
        super().__init__(books)
        self.lost = False
        self.renewed: list[set[str]] = []

    @override
    async def renew(self, renewals: Sequence[Renewal]) -> Sequence[RenewalState]:
        await anyio.lowlevel.checkpoint()
        self.renewed.append({one.grant.hold.id for one in renewals})
        if self.lost:
            raise StoreUnavailable
        return await super().renew(renewals)

    @override
    async def settle(self, grant: Grant, usage: Usage) -> SettleResult:
        if self.lost:
            raise StoreUnavailable
        return await super().settle(grant, usage)


class Rig:
    """A keeper on a store of its own, with what it told of."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.books = Books(self.clock)
        self.store = Store(self.books)
        self.settled: list[SettleResult] = []
        self.swept: list[Swept] = []
        self.keeper = LeaseKeeper(
            self.store,
            self.clock,
            on_settled=self.settled.append,
            on_swept=self.swept.append,
            principals=lambda: ["not seeded yet", "team"],
        )

    async def held(self, *names: str) -> list[Reservation]:
        """Reservations that live on beyond any block."""
        await self.store.seed([Principal("team", "digest")])
        held = []
        for name in names:
            life = Life(Pulse(Deadlines(), 0.0))
            reservation = self.keeper.reservation(life)
            await reservation.hold(Hold(name, "team", "m", 7, 1000, stream=True))
            held.append(reservation)
        return held

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.keeper.run)
            await anyio.wait_all_tasks_blocked()
            yield
            tasks.cancel_scope.cancel()


def usage() -> Usage:
    return USAGE


async def test_keeper_renews_what_is_due_in_one_call() -> None:
    rig = Rig()
    first, second, _ = await rig.held("a", "b", "c")
    async with rig.running():
        first.dispatch()
        second.dispatch()
        await anyio.wait_all_tasks_blocked()
        assert rig.store.renewed == [{"a", "b"}]
        assert first.quiet_to == second.quiet_to == LEAST_ALLOWANCE * 3 // 4


async def test_renewal_that_can_wait_takes_those_along_that_will_need_it() -> None:
    rig = Rig()
    first, second, third = await rig.held("a", "b", "c")
    progress = {first: 0, second: 0, third: 0}
    async with rig.running():
        for reservation in progress:
            reservation.charge_by(usage, partial(progress.get, reservation))
            reservation.dispatch()
        await anyio.wait_all_tasks_blocked()
        progress.update({first: 49, second: 40, third: 10})
        rig.keeper.renew(first, at_once=False)
        with anyio.fail_after(HEARTBEAT_SECONDS / 2):
            while len(rig.store.renewed) < 2:  # noqa: ASYNC110 - it waits for others
                await anyio.sleep(GATHER_SECONDS / 4)
    assert rig.store.renewed == [{"a", "b", "c"}, {"a", "b"}]


async def test_keeper_renews_all_when_the_heart_beats() -> None:
    rig = Rig()
    first, _ = await rig.held("a", "b")
    async with rig.running():
        rig.clock.move(HEARTBEAT_SECONDS)
        rig.keeper.renew(first, at_once=True)  # it would wake by itself, in a second
        await anyio.wait_all_tasks_blocked()
    assert rig.store.renewed == [{"a", "b"}]


async def test_keeper_renews_no_more_what_has_ended() -> None:
    rig = Rig()
    first, _ = await rig.held("a", "b")
    async with first:
        pass
    assert len(rig.keeper.kept) == 1


async def test_keeper_lets_live_ones_go_on_when_the_store_is_lost() -> None:
    rig = Rig()
    (reservation,) = await rig.held("a")
    rig.store.lost = True
    async with rig.running():
        reservation.dispatch()
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(0.5):
            await reservation.pass_to(LEAST_ALLOWANCE)


async def test_backlog_is_settled_when_the_store_answers_again() -> None:
    rig = Rig()
    rig.store.lost = True
    async with rig.running():
        for reservation in await rig.held("a", "b"):
            async with reservation:
                reservation.charge_by(usage)
                reservation.dispatch()
        assert (rig.keeper.backlog, rig.settled) == (2, [])
        await rig.keeper.drain()
        assert rig.keeper.backlog == 2
        rig.store.lost = False
        with anyio.fail_after(2):
            while rig.keeper.backlog:  # noqa: ASYNC110 - the keeper's own loop does it
                await anyio.sleep(0.01)
    assert rig.settled == [SettleResult.SETTLED] * 2


async def test_hold_of_a_dead_process_is_swept_though_its_key_is_idle() -> None:
    rig = Rig()
    (reservation,) = await rig.held("a")
    rig.keeper.drop(reservation)  # as if another process had held it
    rig.clock.move(LEASE_SECONDS)
    async with rig.running():
        with anyio.fail_after(4):
            while not rig.swept:  # noqa: ASYNC110 - the keeper's own loop does it
                await anyio.sleep(0.01)
    assert rig.swept == [Swept(released=1)]
