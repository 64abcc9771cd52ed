"""One reservation, from hold to settlement, and the gate it puts before the relay.

Write-ahead: the ledger always knows a number of completion tokens that is at least what
has been relayed. Should this process die, a sweep charges that number::

    relayed ≤ allowed ≤ relayed + A        A = max(64, what 0.2 s of this stream bring)

Three marks on the way, in completion tokens; a stream runs from left to right::

    0 ─────── relayed ──────── quiet_to ─────── allowed ──────── asked
                               ask for more     wait here        in the next renewal

When three quarters of the allowance are used, a renewal goes out of turn; the relay
waits only if its answer is not there when the last quarter is used up, too. Before the
ledger has confirmed the dispatch mark, ``allowed`` is -1: nothing passes.
"""

from __future__ import annotations

from enum import Enum
from math import ceil
from typing import TYPE_CHECKING, Protocol, Self, override

import anyio

from gateway.admission.ledger import (
    Grant,
    Hold,
    Ledger,
    Renewal,
    RenewalState,
    SettleResult,
    Usage,
)
from gateway.errors import InvalidApiKey, QuotaExhausted, StoreUnavailable
from streaming.pump import Gate

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from streaming.deadlines import Clock
    from streaming.life import Life

LEAST_ALLOWANCE = 64
PACE_SECONDS = 0.2
SETTLE_SECONDS = 2.0


class State(Enum):
    """Where a reservation stands, as far as this process knows."""

    ABSENT = "absent"
    ASKED = "asked"  # a reserve call is or was under way: it may have happened
    HELD = "held"
    OVER = "over"


class Keeper(Protocol):
    """What a reservation needs of the process around it."""

    @property
    def ledger(self) -> Ledger:
        """Where tokens are held."""
        ...

    def keep(self, reservation: Reservation) -> None:
        """Renew its lease from now on."""
        ...

    def drop(self, reservation: Reservation) -> None:
        """No longer renew it."""
        ...

    def renew(self, reservation: Reservation, *, at_once: bool) -> None:
        """Renew it out of turn: at once, or soon and with others."""
        ...

    def postpone(self, grant: Grant, usage: Usage | None) -> None:
        """Settle, or release without usage, when the store answers again."""
        ...

    def count(self, result: SettleResult) -> None:
        """Take note of a settlement."""
        ...


class Reservation(Gate):
    """Tokens held for one exchange; its block settles or releases them at the end.

    The block does not hold by itself: ``hold`` does, inside whatever scope may cancel
    the exchange, while leaving the block settles outside of it.

    Args:
        keeper: Renews leases and takes over what could not be settled in time.
        life: Ended when the key is revoked.
        clock: Monotonic seconds.

    Attributes:
        dispatched: The request may have reached a provider.
        was_held: The ledger has held it at some time.
    """

    def __init__(self, keeper: Keeper, life: Life, clock: Clock) -> None:
        self._keeper = keeper
        self._life = life
        self._clock = clock
        self._state = State.ABSENT
        self._grant: Grant | None = None
        self._charge: Callable[[], Usage | None] = lambda: None
        self._known_progress: Callable[[], int | None] = lambda: None
        self._asked = -1  # allowance in the next renewal
        self._quiet_to = -1
        self._progress = 0
        self._allowed = -1  # allowance the ledger has confirmed; -1: no mark yet
        self._marks: list[tuple[float, int]] = []  # (time, tokens), oldest first
        self._moved: anyio.Event | None = None  # made by who waits for it
        self.dispatched = False
        self.was_held = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        state, self._state = self._state, State.OVER
        if self._grant is None or state is State.ABSENT:
            return
        self._keeper.drop(self)
        usage = self._charge() if self.dispatched else None
        done = False
        with anyio.move_on_after(SETTLE_SECONDS, shield=True):
            done = await self._settle(self._grant, usage)
        if not done:
            self._keeper.postpone(self._grant, usage)  # the lease is the backstop

    @property
    def amount(self) -> int:
        """Tokens held."""
        return 0 if self._grant is None else self._grant.hold.amount

    async def hold(self, hold: Hold) -> Grant:
        """Reserve; whatever ``Ledger.reserve`` raises means that nothing is held."""
        # Until there is a real one: enough to release by id a call that was cancelled.
        self._grant = Grant(
            hold, epoch="", day="", month="", requests=None, tokens=None
        )
        self._state = State.ASKED
        try:
            self._grant = await self._keeper.ledger.reserve(hold)
        except StoreUnavailable:
            raise  # it may have happened: leaving the block releases it
        except Exception:
            self._state = State.ABSENT
            raise
        self._state = State.HELD
        self.was_held = True
        self._keeper.keep(self)
        return self._grant

    def charge_by(
        self,
        charge: Callable[[], Usage | None],
        known_progress: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Ask these what it cost, and how far it is.

        Args:
            charge: Asked at the end, unless the request never reached a provider; None
                releases.
            known_progress: Completion tokens so far, where that is known for certain
                and at once. Then every renewal brings a new allowance.
        """
        self._charge = charge
        self._known_progress = known_progress

    def dispatch(self) -> None:
        """The request goes to a provider now; from a second one on that is no news."""
        if not self.dispatched:
            self.dispatched = True
            self._ask(0)
            self._keeper.renew(self, at_once=True)  # nothing passes without the mark

    @property
    @override
    def quiet_to(self) -> int:
        """Three quarters of the allowance; all of it when no more can be had.

        An allowance that was asked for and not yet confirmed is none.
        """
        return min(self._quiet_to, self._allowed)

    @override
    async def pass_to(self, tokens: int) -> None:
        """Wait until this many tokens may be relayed.

        A single event larger than the allowance is written ahead whole.
        """
        self._progress = tokens
        if tokens > self._quiet_to and self._ask(tokens):
            self._keeper.renew(self, at_once=tokens > self._allowed)
        while tokens > self._allowed:
            if self._moved is None:
                self._moved = anyio.Event()
            await self._moved.wait()

    @property
    def is_half_used(self) -> bool:
        """Whether half of the least allowance is used, or more."""
        progress = self._known_progress()
        used = self._progress if progress is None else progress
        return self._asked - used < LEAST_ALLOWANCE // 2

    def renewal(self) -> Renewal:
        """What the next renewal of this lease says."""
        assert self._grant is not None  # noqa: S101 # kept ones are held
        if self.dispatched and (tokens := self._known_progress()) is not None:
            self._progress = tokens
            self._ask(tokens)
        return Renewal(
            self._grant, max(0, self._asked), self.dispatched, progress=self._progress
        )

    def renewed(self, renewal: Renewal, state: RenewalState) -> None:
        """The ledger has answered."""
        if state is RenewalState.UNKNOWN:
            self.store_lost()
            return
        if state is RenewalState.REVOKED:
            self._life.end(InvalidApiKey())
        if renewal.dispatched:
            self._move(max(self._allowed, renewal.allowed))

    def store_lost(self) -> None:
        """The ledger does not answer: go on to what is reserved.

        Beyond that the stream is cut, where our count leaves no doubt.
        """
        if not self.dispatched:
            return
        # Our own count is of another tokenizer than the model's, hence twice.
        bound = 2 * self._held_completion + LEAST_ALLOWANCE
        if self._asked > bound:
            self._life.end(QuotaExhausted())
        self._move(max(self._allowed, self._asked))

    def _move(self, allowed: int) -> None:
        self._allowed = allowed
        moved, self._moved = self._moved, None
        if moved is not None:
            moved.set()

    def _ask(self, tokens: int) -> bool:
        """Have the next renewal ask for an allowance beyond these tokens.

        Returns:
            Whether that is more than was asked for before.
        """
        ahead = max(LEAST_ALLOWANCE, self._sent_lately(tokens))
        # Never more than is held, unless the provider itself went beyond.
        wanted = max(tokens, min(tokens + ahead, self._held_completion))
        if wanted <= self._asked:
            return False
        self._asked = wanted
        last = wanted >= self._held_completion
        self._quiet_to = wanted if last else tokens + ahead * 3 // 4
        return True

    def _sent_lately(self, tokens: int) -> int:
        """How many of these tokens the last ``PACE_SECONDS`` brought."""
        now = self._clock()
        marks = self._marks
        marks.append((now, tokens))
        while len(marks) > 1 and marks[1][0] <= now - PACE_SECONDS:
            del marks[0]
        since, before = marks[0]
        if now - since < PACE_SECONDS:  # the stream is younger than that
            return tokens
        return ceil((tokens - before) * PACE_SECONDS / (now - since))

    @property
    def _held_completion(self) -> int:
        assert self._grant is not None  # noqa: S101 # asked after hold() only
        return self._grant.hold.completion_tokens

    async def _settle(self, grant: Grant, usage: Usage | None) -> bool:
        ledger = self._keeper.ledger
        try:
            if usage is None:
                result = await ledger.release(grant)
            else:
                result = await ledger.settle(grant, usage)
        except StoreUnavailable:
            return False
        self._keeper.count(result)
        return True
