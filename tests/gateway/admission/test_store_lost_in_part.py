"""The lease keeper when the store answers for some keys and not for others."""

from collections.abc import Sequence
from typing import override

import anyio
import pytest

from gateway.admission.leases import BACKLOG_BATCH, HEARTBEAT_SECONDS, LeaseKeeper
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

LOST, WELL = "a-lost", "b-well"


class HalfLedger(ModelLedger):
    """One that has no answer for one of its keys."""

    @override
    async def renew(self, renewals: Sequence[Renewal]) -> Sequence[RenewalState]:
        await anyio.lowlevel.checkpoint()
        states = await super().renew(renewals)
        owners = [one.grant.hold.principal for one in renewals]
        return [
            RenewalState.UNKNOWN if owner == LOST else state
            for owner, state in zip(owners, states, strict=True)
        ]

    @override
    async def settle(self, grant: Grant, usage: Usage) -> SettleResult:
        if grant.hold.principal == LOST:
            raise StoreUnavailable
        return await super().settle(grant, usage)

    @override
    async def sweep(self, principal: str) -> Swept:
        if principal == LOST:
            raise StoreUnavailable
        return await super().sweep(principal)


class Rig:
    """A keeper on such a ledger."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.ledger = HalfLedger(Books(self.clock))
        self.settled: list[SettleResult] = []
        self.swept: list[Swept] = []
        self.keeper = LeaseKeeper(
            self.ledger,
            self.clock,
            on_settled=self.settled.append,
            on_swept=self.swept.append,
            principals=lambda: [LOST, WELL],
        )

    async def held(self, name: str, principal: str) -> Reservation:
        """A reservation that lives on beyond any block."""
        await self.ledger.seed([Principal(principal, "digest")])
        reservation = self.keeper.reservation(Life(Pulse(Deadlines(), 0.0)))
        await reservation.hold(Hold(name, principal, "m", 7, 1000, stream=True))
        return reservation


async def test_streams_go_on_with_and_without_an_answer() -> None:
    rig = Rig()
    held = [await rig.held("a", LOST), await rig.held("b", WELL)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.keeper.run)
        for reservation in held:
            reservation.dispatch()
            with anyio.fail_after(HEARTBEAT_SECONDS / 2):
                await reservation.pass_to(LEAST_ALLOWANCE)
        tasks.cancel_scope.cancel()


async def test_settlements_of_a_lost_key_do_not_keep_those_of_others_waiting() -> None:
    rig = Rig()
    for principal, amount in ((LOST, BACKLOG_BATCH + 20), (WELL, 30)):
        await rig.ledger.seed([Principal(principal, "digest")])
        for number in range(amount):
            hold = Hold(f"{principal}{number}", principal, "m", 7, 9, stream=True)
            rig.keeper.postpone(await rig.ledger.reserve(hold), Usage(7, 1))
    await rig.keeper.drain()
    assert rig.settled == []  # the first round has ended before it came to them
    await rig.keeper.drain()
    assert rig.settled == [SettleResult.SETTLED] * 30
    assert rig.keeper.backlog == BACKLOG_BATCH + 20


async def test_sweeper_goes_on_to_the_keys_after_a_lost_one() -> None:
    rig = Rig()
    rig.keeper.drop(await rig.held("b", WELL))
    rig.clock.move(LEASE_SECONDS)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.keeper.run)
        with anyio.fail_after(4):
            while not rig.swept:  # noqa: ASYNC110 - the keeper's own loop does it
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert rig.swept == [Swept(released=1)]
