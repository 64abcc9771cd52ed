"""The lease keeper: one heartbeat for all live reservations of this process.

Three loops, one file, because they share one fear: that the store forgets or this
process dies.

========== ============================ =========================================
loop       does                         so that
========== ============================ =========================================
heartbeat  renews all leases, batched   a dead process's holds end after 5 s
backlog    settles what had to wait     an outage of the store charges nobody twice
sweeper    sweeps idle principals       a hold ends though its key is never used again
========== ============================ =========================================
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import override

import anyio
from anyio.lowlevel import checkpoint

from gateway.admission.ledger import (
    Grant,
    Ledger,
    Renewal,
    SettleResult,
    Swept,
    Usage,
)
from gateway.admission.reservation import Keeper, Reservation
from gateway.errors import InvalidApiKey, StoreUnavailable
from streaming.deadlines import Clock
from streaming.life import Life

HEARTBEAT_SECONDS = 0.8
"""A stream of up to 60 tokens a second never needs a renewal out of turn."""
GATHER_SECONDS = 0.02
"""How long a renewal out of turn waits for others. At 320 tokens a second a quarter of
the allowance lasts for 50 ms."""
SWEEP_SECONDS = 0.8
"""With the lease it bounds how long a dead process's holds last: 6 s."""
SWEEP_MOST = 200
"""Keys a round; with more of them a round goes on where the last one stopped. Nobody
waits for it: every script sweeps the key it is about."""
BACKLOG_SECONDS = 0.5
BACKLOG_BATCH = 100
"""Settlements asked for at a time. When none of them is answered the round ends: the
store is lost, not one node of it."""
BACKLOG_MOST = 100_000
"""Settlements that may wait; beyond it the oldest is left to its lease."""

type _Waiting = tuple[Grant, Usage | None]


class LeaseKeeper(Keeper):
    """Keeps the leases of this process.

    Args:
        ledger: Where tokens are held.
        clock: Monotonic seconds.
        on_settled: Told the result of every settlement (a metric).
        on_swept: Told what each sweep ended (a metric).
        principals: Ids to sweep, asked at every round.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        on_settled: Callable[[SettleResult], None],
        on_swept: Callable[[Swept], None],
        principals: Callable[[], Sequence[str]],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._on_settled = on_settled
        self._on_swept = on_swept
        self._principals = principals
        self._kept: dict[Reservation, None] = {}
        self._due: dict[Reservation, None] = {}
        self._asked = anyio.Event()
        self._hurried = anyio.Event()
        self._backlog: deque[_Waiting] = deque(maxlen=BACKLOG_MOST)

    @property
    @override
    def ledger(self) -> Ledger:
        """Where tokens are held."""
        return self._ledger

    @property
    def kept(self) -> Sequence[Reservation]:
        """Live reservations."""
        return tuple(self._kept)

    @property
    def backlog(self) -> int:
        """Settlements that wait for the store."""
        return len(self._backlog)

    def reservation(self, life: Life) -> Reservation:
        """A reservation, not yet held."""
        return Reservation(self, life, self._clock)

    @override
    def keep(self, reservation: Reservation) -> None:
        """Renew its lease from now on."""
        self._kept[reservation] = None

    @override
    def drop(self, reservation: Reservation) -> None:
        """No longer renew it."""
        self._kept.pop(reservation, None)
        self._due.pop(reservation, None)

    @override
    def renew(self, reservation: Reservation, *, at_once: bool) -> None:
        """Renew it out of turn: at once, or soon and with others."""
        self._due[reservation] = None
        self._asked.set()
        if at_once:
            self._hurried.set()

    @override
    def postpone(self, grant: Grant, usage: Usage | None) -> None:
        """Settle, or release without usage, when the store answers again."""
        self._backlog.append((grant, usage))

    @override
    def count(self, result: SettleResult) -> None:
        """Take note of a settlement."""
        self._on_settled(result)

    async def run(self) -> None:
        """Keep until cancelled."""
        async with anyio.create_task_group() as loops:
            loops.start_soon(self._beat)
            loops.start_soon(self._work_off)
            loops.start_soon(self._sweep)

    async def drain(self) -> None:
        """Ask for all that waits, once each; bounded by the caller."""
        left = len(self._backlog)
        while size := min(left, BACKLOG_BATCH, len(self._backlog)):
            left -= size
            batch = [self._backlog.popleft() for _ in range(size)]
            lost: list[_Waiting] = []
            async with anyio.create_task_group() as calls:
                for waiting in batch:
                    calls.start_soon(self._settle, waiting, lost)
            self._backlog.extend(lost)
            if len(lost) == size:
                return

    async def _beat(self) -> None:
        next_beat = self._clock() + HEARTBEAT_SECONDS
        while True:
            with anyio.move_on_after(max(0.0, next_beat - self._clock())):
                await self._asked.wait()
                if not self._hurried.is_set():
                    with anyio.move_on_after(GATHER_SECONDS):
                        await self._hurried.wait()
            if (now := self._clock()) >= next_beat:
                next_beat = now + HEARTBEAT_SECONDS
                due = list(self._kept)
            elif self._hurried.is_set():
                due = list(self._due)
            else:  # with those that will need it soon
                due = [
                    one for one in self._kept if one in self._due or one.is_half_used
                ]
            self._due.clear()
            self._asked, self._hurried = anyio.Event(), anyio.Event()
            if due:
                await self._renew(due)

    async def _renew(self, due: Sequence[Reservation]) -> None:
        renewals: list[Renewal] = [reservation.renewal() for reservation in due]
        try:
            states = await self._ledger.renew(renewals)
        except StoreUnavailable:
            for reservation in due:
                reservation.store_lost()
            return
        for reservation, renewal, state in zip(due, renewals, states, strict=True):
            reservation.renewed(renewal, state)

    async def _work_off(self) -> None:
        while True:
            await anyio.sleep(BACKLOG_SECONDS)
            await self.drain()

    async def _settle(self, waiting: _Waiting, lost: list[_Waiting]) -> None:
        """Settle one; without an answer it is lost, for this time."""
        grant, usage = waiting
        try:
            if usage is None:
                self.count(await self._ledger.release(grant))
            else:
                self.count(await self._ledger.settle(grant, usage))
        except StoreUnavailable:
            lost.append(waiting)

    async def _sweep(self) -> None:
        first = 0
        while True:
            await anyio.sleep(SWEEP_SECONDS)
            principals = self._principals()
            if first >= len(principals):
                first = 0
            last = first + SWEEP_MOST
            for principal in principals[first:last]:
                try:
                    self._on_swept(await self._ledger.sweep(principal))
                # The next may be at another node; one just read may not be seeded.
                except (StoreUnavailable, InvalidApiKey):
                    await checkpoint()
            first = last
