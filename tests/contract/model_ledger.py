"""The ledger in plain Python: what the books must say, with no thought of speed.

Nothing is counted along the way: what is held or used is summed up from the records
each time it is asked for. One process, one clock, no losses.
"""

from collections.abc import Callable, Sequence
from copy import replace
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import floor
from typing import override

from gateway.admission.ledger import (
    LEASE_SECONDS,
    Grant,
    Hold,
    Ledger,
    OpenReservation,
    Rate,
    Refused,
    Renewal,
    RenewalState,
    SettleResult,
    Statement,
    Swept,
    Usage,
    Window,
)
from gateway.auth.principal import Principal
from gateway.errors import (
    ConcurrencyExceeded,
    InvalidApiKey,
    QuotaExhausted,
    RateLimited,
)
from streaming.errors import Fault, LocalFault


@dataclass
class Record:
    """One reservation. ``state``: held, settled, released, expired."""

    grant: Grant
    lease_ends: float
    state: str = "held"
    swept: bool = False
    charged: int = 0
    allowed: int = 0
    progress: int = 0
    dispatched: bool = False


@dataclass
class Bucket:
    """A per-minute limit: ``taken`` tokens at ``at``, draining at the limit's pace."""

    limit: int
    taken: float = 0.0
    at: float = 0.0

    def drain(self, now: float) -> None:
        self.taken = max(0.0, self.taken - (now - self.at) * self.limit / 60)
        self.at = now

    def rate(self) -> Rate:
        remaining = max(0, floor(self.limit - self.taken + 1e-3))
        return Rate(self.limit, remaining, self.taken * 60 / self.limit)


@dataclass
class Account:
    """One principal's books."""

    principal: Principal
    revoked: bool = False
    records: dict[str, Record] = field(default_factory=dict)
    requests: Bucket | None = None
    tokens: Bucket | None = None

    def held(self) -> list[Record]:
        return [one for one in self.records.values() if one.state == "held"]


@dataclass
class Books:
    """All accounts, and the time."""

    clock: Callable[[], float]
    accounts: dict[str, Account] = field(default_factory=dict)


class ModelLedger(Ledger):
    """A ledger on shared books; several of them are a fleet."""

    def __init__(self, books: Books, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._books = books
        self._lease_seconds = lease_seconds

    @override
    async def reserve(self, hold: Hold) -> Grant:
        account = self._account(hold.principal)
        if account.revoked:
            raise InvalidApiKey
        if record := account.records.get(hold.id):
            if record.state != "held":
                raise LocalFault
            return record.grant
        self._sweep(account)
        now = self._books.clock()
        if refusal := self._refusal(account, hold):
            limit, fault = refusal
            raise fault from Refused(limit, *_rates(account))
        for bucket, cost in ((account.requests, 1), (account.tokens, hold.amount)):
            if bucket is not None:
                bucket.taken += cost
        today = datetime.fromtimestamp(now, UTC)
        grant = Grant(
            hold, "e", f"{today:%Y%m%d}", f"{today:%Y%m}", *_rates(account), 0
        )
        lease_ends = now + self._lease_seconds
        account.records[hold.id] = Record(grant, lease_ends)
        return grant

    def _refusal(self, account: Account, hold: Hold) -> tuple[str, Fault] | None:
        limits = account.principal.limits
        for window in self._windows(account):
            taken = window.used + window.reserved + hold.amount
            if window.limit is not None and taken > window.limit:
                wait = window.resets_at_ms / 1000 - self._books.clock()
                return window.name, QuotaExhausted(
                    retry_after_seconds=wait, should_retry=False
                )
        if limits.concurrency is not None and (
            len(account.held()) >= limits.concurrency
        ):
            return "concurrency", ConcurrencyExceeded(retry_after_seconds=1)
        for name, bucket, cost in (
            ("requests", account.requests, 1),
            ("tokens", account.tokens, hold.amount),
        ):
            if bucket is not None and bucket.taken + cost > bucket.limit + 1e-3:
                wait = (bucket.taken + cost - bucket.limit) * 60 / bucket.limit
                return name, RateLimited(
                    retry_after_seconds=wait, should_retry=cost <= bucket.limit
                )
        return None

    @override
    async def renew(self, renewals: Sequence[Renewal]) -> Sequence[RenewalState]:
        states = []
        for renewal in renewals:
            hold = renewal.grant.hold
            account = self._account(hold.principal)
            record = account.records.get(hold.id)
            if record is None or record.state != "held":
                states.append(RenewalState.GONE)
                continue
            record.allowed = max(record.allowed, renewal.allowed)
            record.progress = max(record.progress, renewal.progress)
            record.dispatched |= renewal.dispatched
            record.lease_ends = self._books.clock() + self._lease_seconds
            revoked = account.revoked
            states.append(RenewalState.REVOKED if revoked else RenewalState.HELD)
        renewed = {renewal.grant.hold.id for renewal in renewals}
        for principal in {renewal.grant.hold.principal for renewal in renewals}:
            self._sweep(self._account(principal), but=renewed)
        return states

    @override
    async def settle(self, grant: Grant, usage: Usage) -> SettleResult:
        return self._finish(grant, SettleResult.SETTLED, usage.total)

    @override
    async def release(self, grant: Grant) -> SettleResult:
        return self._finish(grant, SettleResult.RELEASED, 0)

    def _finish(self, grant: Grant, result: SettleResult, used: int) -> SettleResult:
        account = self._account(grant.hold.principal)
        record = account.records[grant.hold.id]
        if record.state != "held" and not record.swept:
            result = SettleResult.DUPLICATE
        else:
            late = record.state != "held"
            self._end(account, record, result.value, used)
            record.swept = False
            result = SettleResult.LATE if late else result
        self._sweep(account)
        return result

    @override
    async def sweep(self, principal: str) -> Swept:
        return self._sweep(self._account(principal))

    def _sweep(self, account: Account, but: set[str] | None = None) -> Swept:
        expired = released = 0
        for record in account.held():
            hold = record.grant.hold
            if record.lease_ends > self._books.clock() or hold.id in (but or ()):
                continue
            record.swept = True
            if record.dispatched:
                seen = record.allowed if hold.stream else min(64, record.allowed)
                self._end(account, record, "expired", hold.prompt_tokens + seen)
                expired += 1
            else:
                self._end(account, record, "released", 0)
                released += 1
        return Swept(expired, released)

    def _end(self, account: Account, record: Record, state: str, used: int) -> None:
        before = record.grant.hold.amount if record.state == "held" else record.charged
        record.state, record.charged = state, used
        if account.tokens is not None:
            account.tokens.drain(self._books.clock())
            account.tokens.taken = max(0.0, account.tokens.taken + used - before)

    @override
    async def read(self, principal: str) -> Statement:
        account = self._account(principal)
        self._sweep(account)
        return Statement(
            principal=principal,
            revoked=account.revoked,
            windows=self._windows(account),
            requests=_rates(account)[0],
            tokens=_rates(account)[1],
            concurrency_limit=account.principal.limits.concurrency,
            in_use=len(account.held()),
            reservations=tuple(
                OpenReservation(
                    record.grant.hold.id,
                    record.grant.hold.model,
                    record.grant.hold.amount,
                    record.progress,
                    0.0,
                )
                for record in account.held()
            ),
        )

    def _windows(self, account: Account) -> tuple[Window, Window]:
        limits = account.principal.limits
        now = datetime.fromtimestamp(self._books.clock(), UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        tomorrow = midnight + timedelta(days=1)
        next_month = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
        day, month = f"{now:%Y%m%d}", f"{now:%Y%m}"
        in_day = [one for one in account.records.values() if one.grant.day == day]
        in_month = [one for one in account.records.values() if one.grant.month == month]
        return (
            _window("day", in_day, limits.tokens_per_day, tomorrow),
            _window("month", in_month, limits.tokens_per_month, next_month),
        )

    @override
    async def seed(self, principals: Sequence[Principal]) -> None:
        for principal in principals:
            account = self._books.accounts.setdefault(principal.id, Account(principal))
            account.principal = principal
            account.requests = _bucket(
                account.requests, principal.limits.requests_per_minute
            )
            account.tokens = _bucket(account.tokens, principal.limits.tokens_per_minute)

    @override
    async def revoke(self, principal: str) -> bool:
        return self._mark(principal, revoked=True)

    @override
    async def restore(self, principal: str) -> bool:
        return self._mark(principal, revoked=False)

    def _mark(self, principal: str, *, revoked: bool) -> bool:
        account = self._books.accounts.get(principal)
        if account is not None:
            account.revoked = revoked
        return account is not None

    @override
    async def is_revoked(self, principal: str) -> bool:
        account = self._books.accounts.get(principal)
        return account is not None and account.revoked

    @override
    async def ping(self) -> None:
        pass

    def _account(self, principal: str) -> Account:
        account = self._books.accounts.get(principal)
        if account is None:
            raise InvalidApiKey
        for bucket in (account.requests, account.tokens):
            if bucket is not None:
                bucket.drain(self._books.clock())
        return account


def _bucket(before: Bucket | None, limit: int | None) -> Bucket | None:
    if limit is None:
        return None
    if before is None:
        return Bucket(limit)
    return replace(before, limit=limit, taken=before.taken * limit / before.limit)


def _rates(account: Account) -> tuple[Rate | None, Rate | None]:
    return _rate(account.requests), _rate(account.tokens)


def _rate(bucket: Bucket | None) -> Rate | None:
    return None if bucket is None else bucket.rate()


def _window(
    name: str, records: list[Record], limit: int | None, ends: datetime
) -> Window:
    used = sum(one.charged for one in records if one.state != "held")
    held = sum(one.grant.hold.amount for one in records if one.state == "held")
    return Window(name, limit, used, held, int(ends.timestamp() * 1000))
