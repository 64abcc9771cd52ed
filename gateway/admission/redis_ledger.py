"""The ledger in Redis: each move is one script on the books of one principal."""

import secrets
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import batched
from time import monotonic
from types import TracebackType
from typing import NoReturn, Self, override

import msgspec
from redis.exceptions import NoScriptError

from gateway.admission.answers import (
    READ,
    RELEASE,
    RENEW,
    RESERVE,
    SEED,
    SETTLE,
    SWEEP,
    Answer,
    Question,
    Reserved,
)
from gateway.admission.books import calendar_at, key_of, keys_of, principal_of
from gateway.admission.cluster import ClusterStore
from gateway.admission.ledger import (
    LEASE_SECONDS,
    Grant,
    Hold,
    Ledger,
    Refused,
    Renewal,
    RenewalState,
    SettleResult,
    Statement,
    Swept,
    Usage,
)
from gateway.admission.observer import Observer, Unobserved
from gateway.admission.scripts import Arguments, Part, command
from gateway.admission.store import PROBE_SECONDS, Reply, Store, reply_of
from gateway.auth.principal import Principal
from gateway.errors import (
    ConcurrencyExceeded,
    InvalidApiKey,
    QuotaExhausted,
    RateLimited,
    StoreUnavailable,
)
from streaming.errors import Fault, LocalFault

BATCH = 100
"""Reservations a script renews or sweeps in one go (``SWEEP_MAX`` in Lua)."""

_SCAN_COUNT = 1000

ATTEMPTS = 4
"""Of a call: window over, script unknown, key unknown, and the one that counts."""

FAULTS: dict[str, type[Fault]] = {
    "day": QuotaExhausted,
    "month": QuotaExhausted,
    "concurrency": ConcurrencyExceeded,
    "requests": RateLimited,
    "tokens": RateLimited,
}
"""What is raised, by the limit that refused."""


class _Call[A: Answer](msgspec.Struct, frozen=True):
    question: Question[A]
    principal: str
    argv: tuple[Part, ...]
    started: float


class RedisLedger(Ledger):
    """Books in Redis, shared by every gateway of the fleet.

    It is used inside its block. It reads no calendar: it names the windows of the last
    answer, and the store says when they are over.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        cluster: Whether the URL is that of a Redis Cluster.
        timeout_seconds: Longest wait for an answer, connecting included.
        lease_seconds: A hold that is not renewed for this long is swept.
        observer: Told of calls, sweeps and losses.
    """

    def __init__(
        self,
        url: str,
        *,
        cluster: bool = False,
        timeout_seconds: float = 0.2,
        lease_seconds: float = LEASE_SECONDS,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer or Unobserved()
        self._store = (ClusterStore if cluster else Store)(
            url,
            timeout_seconds=timeout_seconds,
            on_change=lambda is_up: self._observer.store_changed(is_up=is_up),
        )
        self._lease_ms = round(lease_seconds * 1000)
        self._calendar = calendar_at(0)
        self._arguments: dict[str, Arguments] = {}
        self._principals: dict[str, Principal] = {}
        self._epochs: dict[str, str] = {}
        self._revoked: dict[str, str] = {}  # principal -> epoch in which it was

    async def __aenter__(self) -> Self:
        await self._store.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._store.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102 - its tasks end when cancelled

    @override
    async def reserve(self, hold: Hold) -> Grant:
        answer = await self._ask(
            RESERVE,
            hold.principal,
            hold.id,
            hold.prompt_tokens,
            hold.completion_tokens,
            int(hold.stream),
            hold.model,
            self._lease_ms,
        )
        if answer.status != "held" or hold.principal in self._revoked:
            _refuse(answer)
        requests, tokens = answer.rates()
        return Grant(
            hold=hold,
            epoch=answer.epoch,
            day=answer.day,
            month=answer.month,
            requests=requests,
            tokens=tokens,
            since_ms=answer.since_ms,
        )

    @override
    async def renew(self, renewals: Sequence[Renewal]) -> Sequence[RenewalState]:
        owned: dict[str, list[int]] = {}
        for index, renewal in enumerate(renewals):
            owned.setdefault(renewal.grant.hold.principal, []).append(index)
        sent = []
        for principal, indices in owned.items():
            for batch in batched(indices, BATCH, strict=False):
                rows = msgspec.json.encode([_row(renewals[i]) for i in batch])
                call = self._call(RENEW, principal, self._lease_ms, rows)
                sent.append((batch, call, self._send(call)))
        states = [RenewalState.UNKNOWN] * len(renewals)
        lost: StoreUnavailable | None = None
        for batch, call, reply in sent:
            try:
                answer = await self._answer_to(call, reply)
            except StoreUnavailable as error:
                lost = error
                continue
            for index, state in zip(batch, answer.states, strict=True):
                states[index] = state
        if lost is not None and set(states) == {RenewalState.UNKNOWN}:
            raise lost
        return states

    @override
    async def settle(self, grant: Grant, usage: Usage) -> SettleResult:
        principal = grant.hold.principal
        answer = await self._ask(SETTLE, principal, *_terms(grant), usage.total)
        return SettleResult(answer.status)

    @override
    async def release(self, grant: Grant) -> SettleResult:
        answer = await self._ask(RELEASE, grant.hold.principal, *_terms(grant))
        return SettleResult(answer.status)

    @override
    async def sweep(self, principal: str) -> Swept:
        expired = released = 0
        while True:
            answer = await self._ask(SWEEP, principal)
            expired += answer.expired
            released += answer.released
            if answer.expired + answer.released < BATCH:
                return Swept(expired, released)

    @override
    async def read(self, principal: str) -> Statement:
        answer = await self._ask(READ, principal)
        return answer.statement(principal)

    @override
    async def seed(self, principals: Sequence[Principal]) -> None:
        self._principals.update((one.id, one) for one in principals)
        await self._seed([one.id for one in principals])

    @override
    async def revoke(self, principal: str) -> bool:
        return await self._mark(principal, revoked=True)

    @override
    async def restore(self, principal: str) -> bool:
        return await self._mark(principal, revoked=False)

    @override
    async def is_revoked(self, principal: str) -> bool:
        epoch, mark = await self._command("HMGET", principal, "epoch", "revoked")
        if epoch is not None:
            await self._note(principal, epoch.decode(), revoked=mark == b"1")
        return principal in self._revoked

    async def known(self) -> list[str]:
        """Ids of all keys the store knows, in order; walks the whole store."""
        await self._store.ping()
        found: set[str] = set()
        for store in self._store.masters:
            cursor: Part | None = 0
            while cursor != b"0":
                cursor, keys = await store.call(
                    "SCAN", cursor or 0, "MATCH", key_of("*"), "COUNT", _SCAN_COUNT
                )
                found.update(principal_of(key.decode()) for key in keys)
        return sorted(found)

    @override
    async def ping(self) -> None:
        await self._store.ping()

    async def _mark(self, principal: str, *, revoked: bool) -> bool:
        epoch = await self._command("HGET", principal, "epoch")
        if epoch is None:
            return False
        await self._command("HSET", principal, "revoked", int(revoked))
        self._remember(principal, epoch.decode(), revoked=revoked)
        return True

    async def _command(self, name: str, principal: str, *parts: Part) -> Reply:
        # Of those that concern the key itself, and need no script.
        encoded = command(name, key_of(principal), *parts)
        return reply_of(await self._store.send(encoded, principal))

    async def _seed(self, principals: Sequence[str]) -> None:
        lost: StoreUnavailable | None = None
        for batch in batched(principals, BATCH, strict=False):
            calls = [self._call(SEED, one, *self._fields(one)) for one in batch]
            sent = [(call, self._send(call)) for call in calls]
            for call, reply in sent:
                try:
                    await self._answer_to(call, reply)
                except StoreUnavailable as error:  # the next may be at another node
                    lost = error
        if lost is not None:
            raise lost

    def _fields(self, principal: str) -> tuple[Part, ...]:
        one = self._principals[principal]
        fields: list[Part] = ["digest", one.digest]
        fields += ["models", msgspec.json.encode(one.models)]
        for name, limit in asdict(one.limits).items():
            fields += [name, "" if limit is None else limit]
        return (secrets.token_hex(8), self._revoked.get(principal, ""), *fields)

    def _call[A: Answer](
        self, question: Question[A], principal: str, *argv: Part
    ) -> _Call[A]:
        return _Call(question, principal, argv, monotonic())

    def _send[A: Answer](
        self, call: _Call[A], *, load: bool = False
    ) -> Awaitable[Reply | Exception]:
        script = call.question.script
        encode = script.load_and_call if load else script.call
        if call.question is SEED:
            arguments = Arguments.of((key_of(call.principal),))
        else:
            arguments = self._books_of(call.principal)
        return self._store.send(encode(arguments, call.argv), call.principal)

    def _books_of(self, principal: str) -> Arguments:
        arguments = self._arguments.get(principal)
        if arguments is None:
            now = self._calendar
            arguments = self._arguments[principal] = Arguments.of(
                keys_of(principal, now), now.day_ends, now.month_starts, now.month_ends
            )
        return arguments

    async def _ask[A: Answer](
        self, question: Question[A], principal: str, *argv: Part
    ) -> A:
        call = self._call(question, principal, *argv)
        return await self._answer_to(call, self._send(call))

    async def _answer_to[A: Answer](
        self, call: _Call[A], reply: Awaitable[Reply | Exception]
    ) -> A:
        # Every move is idempotent, so one that could not be decided is asked again.
        for _ in range(ATTEMPTS):
            text = await reply
            if isinstance(text, NoScriptError):
                reply = self._send(call, load=True)
                continue
            answer = call.question.decoder.decode(reply_of(text))
            if answer.status == "wrong_window":
                self._calendar = calendar_at(answer.now_s)
                self._arguments.clear()
            elif answer.status == "unseeded":
                await self._seed_again(call.principal)
            else:
                await self._learn(call, answer)
                return answer
            reply = self._send(call)
        raise StoreUnavailable(retry_after_seconds=PROBE_SECONDS)

    async def _learn[A: Answer](self, call: _Call[A], answer: A) -> None:
        principal = call.principal
        seconds = monotonic() - call.started
        self._observer.called(call.question.script.move, seconds)
        if call.question is not SWEEP and (answer.expired or answer.released):
            self._observer.swept(Swept(answer.expired, answer.released))
        if call.question is SEED:
            if self._epochs.get(principal, answer.epoch) != answer.epoch:
                self._observer.degraded("store_lost")
            self._epochs[principal] = answer.epoch
        await self._note(principal, answer.epoch, revoked=answer.revoked)

    async def _note(self, principal: str, epoch: str, *, revoked: bool) -> None:
        known = self._epochs.setdefault(principal, epoch)
        if known == epoch or principal not in self._principals:
            self._remember(principal, epoch, revoked=revoked)
        else:  # another gateway was first to seed, and may not know what we know
            await self._seed_again(principal)

    async def _seed_again(self, principal: str) -> None:
        if principal not in self._principals:
            raise InvalidApiKey
        await self._seed([principal])
        others = (self._revoked.keys() & self._principals.keys()) - {principal}
        with suppress(StoreUnavailable):  # they may be at another node
            await self._seed(sorted(others))

    def _remember(self, principal: str, epoch: str, *, revoked: bool) -> None:
        if revoked:
            self._revoked[principal] = epoch
        else:
            self._revoked.pop(principal, None)


def _refuse(answer: Reserved) -> NoReturn:
    if answer.status == "refused":
        raise FAULTS[answer.limit](
            retry_after_seconds=answer.retry_after_us / 1e6,
            should_retry=answer.should_retry,
        ) from Refused(answer.limit, *answer.rates())
    if answer.status == "over":
        raise LocalFault
    raise InvalidApiKey


def _terms(grant: Grant) -> tuple[Part, ...]:
    return (grant.hold.id, grant.epoch, grant.day, grant.month, grant.since_ms)


def _row(renewal: Renewal) -> tuple[Part, ...]:
    # The order of ARGV 5 in renew.lua.
    grant = renewal.grant
    return (
        grant.hold.id,
        renewal.allowed,
        renewal.progress,
        renewal.dispatched,
        grant.hold.prompt_tokens,
        grant.hold.amount,
        grant.hold.stream,
        grant.hold.model,
        grant.day,
        grant.month,
        grant.epoch,
        grant.since_ms,
    )
