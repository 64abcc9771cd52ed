"""The ledger port: where tokens are held and settled.

States of a reservation; every move is one idempotent script (``lua/<move>.lua``):

======== ========================= ============================================
state    reached by                means
======== ========================= ============================================
absent   (start)                   nothing is known of this id
held     reserve                   ``amount`` tokens are taken out of the limits
settled  settle                    ``used`` tokens are charged, the rest is back
released release, sweep            nothing is charged
expired  sweep (dispatched only)   charged what its last renewal allowed
======== ========================= ============================================

``settled``, ``released`` and ``expired`` leave a tombstone, kept for an hour at most,
that makes a second move a no-op and lets a late settlement correct a sweep, once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import msgspec

from gateway.auth.principal import Principal

LEASE_SECONDS = 5.0
"""A hold that is not renewed for this long is swept."""


class Hold(msgspec.Struct, frozen=True):
    """What is asked of the ledger for one exchange.

    Attributes:
        id: Of the reservation, ``[A-Za-z0-9]{1,64}``, never reused.
        principal: Id of who pays.
        model: The model's public name, for ``/v1/quota``.
        prompt_tokens: Estimate, at least 0.
        completion_tokens: The most the provider may generate, over all choices.
        stream: Whether events are relayed (and so progress is known).
    """

    id: str
    principal: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    stream: bool

    @property
    def amount(self) -> int:
        """Tokens to hold."""
        return self.prompt_tokens + self.completion_tokens


class Rate(msgspec.Struct, frozen=True):
    """One per-minute limit as it stands.

    Attributes:
        limit: Per minute.
        remaining: What could be taken at once, never negative.
        reset_seconds: Until the bucket is full again.
    """

    limit: int
    remaining: int
    reset_seconds: float


class Grant(msgspec.Struct, frozen=True):
    """A reservation that is held.

    Attributes:
        hold: What was asked.
        epoch: Of the principal's books; another one later means the store lost them.
        day: The UTC day that holds it, ``YYYYMMDD``.
        month: The UTC month that holds it, ``YYYYMM``.
        requests: The requests-per-minute limit, None when unlimited.
        tokens: The tokens-per-minute limit, None when unlimited.
        since_ms: When it was held, Unix time of the store. A reservation that is absent
            and younger than any tombstone's life was lost, not settled.
    """

    hold: Hold
    epoch: str
    day: str
    month: str
    requests: Rate | None
    tokens: Rate | None
    since_ms: int = 0


class Refused(Exception):
    """Why a limit refused: the ``__cause__`` of the fault that ``reserve`` raises.

    Attributes:
        limit: ``day``, ``month``, ``concurrency``, ``requests`` or ``tokens``.
        requests: The requests-per-minute limit, None when unlimited.
        tokens: The tokens-per-minute limit, None when unlimited.
    """

    def __init__(self, limit: str, requests: Rate | None, tokens: Rate | None) -> None:
        super().__init__(limit)
        self.limit = limit
        self.requests = requests
        self.tokens = tokens


class Renewal(msgspec.Struct, frozen=True):
    """A live reservation's heartbeat.

    Attributes:
        grant: The reservation.
        allowed: Completion tokens that may have been relayed before the next renewal
            is confirmed; a sweep charges them.
        dispatched: Whether the request may have reached a provider.
        progress: Completion tokens relayed so far, for ``/v1/quota``.
    """

    grant: Grant
    allowed: int
    dispatched: bool
    progress: int = 0


class RenewalState(StrEnum):
    """What a renewal found."""

    HELD = "held"
    REVOKED = "revoked"  # held, but its key was revoked: end the stream
    GONE = "gone"  # settled, released or swept already
    UNKNOWN = "unknown"  # no answer for this one: its part of the store is lost


class Usage(msgspec.Struct, frozen=True):
    """Tokens an exchange really cost; both at least 0."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class SettleResult(StrEnum):
    """What a settlement or a release did; the label of ``settlements_total``."""

    SETTLED = "settled"
    RELEASED = "released"
    LATE = "late"  # corrected what a sweep had charged or released
    DUPLICATE = "duplicate"  # it was settled or released before: nothing changed


@dataclass(frozen=True, slots=True)
class Swept:
    """Reservations a sweep ended: charged ones and released ones."""

    expired: int = 0
    released: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of one calendar window.

    Attributes:
        name: ``day`` or ``month``.
        limit: None when unlimited.
        used: Settled tokens.
        reserved: Tokens held now.
        resets_at_ms: Unix time at which the window ends.
    """

    name: str
    limit: int | None
    used: int
    reserved: int
    resets_at_ms: int


@dataclass(frozen=True, slots=True)
class OpenReservation:
    """A reservation as ``/v1/quota`` shows it; ``progress`` in completion tokens."""

    id: str
    model: str
    reserved: int
    progress: int
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Statement:
    """One consistent read-out of a principal's books."""

    principal: str
    revoked: bool
    windows: tuple[Window, ...]
    requests: Rate | None
    tokens: Rate | None
    concurrency_limit: int | None
    in_use: int
    reservations: tuple[OpenReservation, ...]


class Ledger(Protocol):
    """Holds and settles tokens. Every call is idempotent by reservation id.

    Every method raises ``StoreUnavailable`` when the store did not answer in time; the
    call may have happened all the same, and may be repeated.
    """

    async def reserve(self, hold: Hold) -> Grant:
        """Hold ``hold.amount`` tokens, or change nothing.

        Raises:
            InvalidApiKey: The key is revoked, or was never seeded.
            QuotaExhausted: The day's or the month's tokens do not suffice.
            ConcurrencyExceeded: Too many exchanges of the key are in flight.
            RateLimited: Requests or tokens of this minute do not suffice.
            LocalFault: The reservation has ended: its id is spent.

        The faults of a limit have a ``Refused`` as their cause.
        """
        ...

    async def renew(self, renewals: Sequence[Renewal]) -> Sequence[RenewalState]:
        """Extend many leases in one call; answers in the order given.

        Raises:
            StoreUnavailable: For none of them there is an answer.
        """
        ...

    async def settle(self, grant: Grant, usage: Usage) -> SettleResult:
        """Charge what was used, give back the rest."""
        ...

    async def release(self, grant: Grant) -> SettleResult:
        """Give everything back: nothing reached a provider."""
        ...

    async def sweep(self, principal: str) -> Swept:
        """End this principal's reservations whose lease has run out."""
        ...

    async def read(self, principal: str) -> Statement:
        """One consistent read-out, at no cost in rate.

        Raises:
            InvalidApiKey: The key was never seeded.
        """
        ...

    async def seed(self, principals: Sequence[Principal]) -> None:
        """Make the keys known to the store; never lifts a revocation."""
        ...

    async def revoke(self, principal: str) -> bool:
        """Refuse this key everywhere from now on; False when it is unknown."""
        ...

    async def restore(self, principal: str) -> bool:
        """Lift a revocation; False when the key is unknown."""
        ...

    async def is_revoked(self, principal: str) -> bool:
        """Whether the key is revoked."""
        ...

    async def ping(self) -> None:
        """Ask the store whether it can hold tokens."""
        ...
