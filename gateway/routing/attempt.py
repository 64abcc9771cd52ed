"""Attempts: one candidate after another, until one begins to answer.

The next candidate is asked only before the first byte of an answer, and only after a
fault that says the request was not accepted (``Fault.try_next``). One reservation
covers all attempts of an exchange.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import override

import anyio
import msgspec
from anyio.abc import ByteReceiveStream

from gateway.errors import UpstreamLimited
from gateway.providers.provider import Call, Upstream
from gateway.routing.refusal import ERROR_BODY_BYTES, redact, refusal
from gateway.routing.router import Candidate
from gateway.routing.standing import Standing
from gateway.telemetry.metrics import AttemptResult
from streaming.errors import Fault, UpstreamFault, UpstreamSilent, UpstreamTimeout
from streaming.life import Life

_log = logging.getLogger(__name__)

LIMITED_SECONDS = 1.0
"""How long a provider whose limit is reached comes last, where it does not say."""
LIMITED_MOST_SECONDS = 60.0
_ERROR = 400
_KEY_REFUSED = (401, 403)
_ERROR_BODY_SECONDS = 2.0


class Attempt(msgspec.Struct, frozen=True):
    """An attempt whose answer has begun.

    Attributes:
        candidate: Who answers.
        upstream: The open answer; its status is a success.
        number: How many attempts it took, from 1.
    """

    candidate: Candidate
    upstream: Upstream
    number: int


class Attempts:
    """Opens attempts, as the candidates stand.

    Args:
        standing: Who may be asked.
    """

    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    def open(
        self,
        call: Call,
        candidates: Sequence[Candidate],
        life: Life,
        session: str = "",
    ) -> AbstractAsyncContextManager[Attempt]:
        """Hold the first answer that begins open for the length of the block.

        Args:
            call: What is asked for.
            candidates: Who may be asked.
            life: Of the exchange.
            session: Prefers one of equal candidates; empty: no preference.

        Raises:
            Overloaded: Every healthy candidate has as many exchanges as it may.
            NoHealthyProvider: There is no healthy candidate.
            Fault: The last one's that was asked.
        """
        in_order = self._standing.in_order(candidates, session)
        return _FirstAnswer(self._standing, call, in_order, life)


class _Asked(AbstractAsyncContextManager[Upstream]):
    """A place at a candidate and the answer it has begun, for the length of the block.

    Entering raises the fault that kept the answer from beginning; then nothing is held.
    """

    def __init__(
        self,
        standing: Standing,
        candidate: Candidate,
        answer: AbstractAsyncContextManager[Upstream],
        life: Life,
        *,
        extra: bool,
    ) -> None:
        self._standing = standing
        self._candidate = candidate
        self._answer = answer
        self._life = life
        self._extra = extra

    @override
    async def __aenter__(self) -> Upstream:
        self._standing.begin(self._candidate, extra=self._extra)
        try:
            with self._life.trial():
                upstream = await self._answer.__aenter__()
                if upstream.status >= _ERROR:
                    try:
                        raise await self._refusal(upstream)
                    finally:
                        await self._answer.__aexit__(None, None, None)  # noqa: ASYNC102 - closing an upstream never waits
        except BaseException as error:
            self._leave(error)
            raise
        self._standing.note_answer(extra=self._extra)
        self._extra = False
        return upstream

    @override
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._answer.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102 - closing an upstream never waits
        finally:
            self._leave(exc)

    def _leave(self, error: BaseException | None) -> None:
        result = _result(error, self._life)
        self._standing.end(self._candidate, result, extra=self._extra)

    async def _refusal(self, upstream: Upstream) -> UpstreamFault:
        """Why the candidate refuses, fit for the caller; noted for the next call."""
        provider = self._candidate.provider
        if upstream.status in _KEY_REFUSED:
            _log.warning(
                "provider %s refuses our key: %d", provider.name, upstream.status
            )
        body = await _read_some(upstream.body)
        fault = refusal(upstream.status, upstream.headers, body)
        redact(fault, provider)
        if isinstance(fault, UpstreamLimited):
            seconds = fault.retry_after_seconds or LIMITED_SECONDS
            limited = min(seconds, LIMITED_MOST_SECONDS)
            self._standing.note_limit(self._candidate, limited)
        return fault


class _FirstAnswer(AbstractAsyncContextManager[Attempt]):
    _asked: _Asked

    def __init__(
        self,
        standing: Standing,
        call: Call,
        candidates: Sequence[Candidate],
        life: Life,
    ) -> None:
        self._standing = standing
        self._call = call
        self._candidates = candidates
        self._life = life

    @override
    async def __aenter__(self) -> Attempt:
        standing = self._standing
        last: Fault | None = None
        number = 0
        silent: set[str] = set()
        for candidate in self._candidates:
            if candidate.provider.name in silent or not standing.admits(candidate):
                continue
            if last is not None and not standing.may_retry():
                break
            number += 1
            try:
                upstream = await self._ask(candidate, extra=number > 1)
            except Fault as fault:
                last = fault
                _log_cause(candidate, fault)
                if not fault.try_next:
                    break
                if isinstance(fault, UpstreamSilent):
                    silent.add(candidate.provider.name)
            else:
                del self._call  # with the request's body: nobody else is asked now
                return Attempt(candidate, upstream, number + upstream.attempts - 1)
        raise last or standing.refusal(self._candidates)

    async def _ask(self, candidate: Candidate, *, extra: bool) -> Upstream:
        """One attempt; what it opened stays open if it succeeds."""
        self._life.pulse.begin_again(self._standing.clock())
        answer = candidate.provider.open(self._call, candidate.model)
        asked = _Asked(self._standing, candidate, answer, self._life, extra=extra)
        upstream = await asked.__aenter__()
        self._asked = asked
        return upstream

    @override
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._asked.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102 - closing an upstream never waits


async def _read_some(body: ByteReceiveStream) -> bytes:
    """An error body as far as it comes: to its end, its bound or its deadline."""
    read = b""
    with anyio.move_on_after(_ERROR_BODY_SECONDS):
        while len(read) < ERROR_BODY_BYTES:
            try:
                read += await body.receive()
            except (anyio.EndOfStream, UpstreamFault):
                break
    return read[:ERROR_BODY_BYTES]


def _log_cause(candidate: Candidate, fault: Fault) -> None:
    """Tell the operator what the caller must not know; the breaker bounds how often."""
    error, text = fault.__cause__, ""
    while error is not None:  # the innermost that says anything
        text = str(error) or text
        error = error.__cause__
    if text and isinstance(fault, UpstreamFault):
        provider = candidate.provider
        _log.warning("provider %s failed: %s", provider.name, provider.redact(text))


def _result(exc: BaseException | None, life: Life) -> AttemptResult:
    cause = exc if isinstance(exc, Fault) else life.cause
    match cause:
        case None:
            return AttemptResult.OK if exc is None else AttemptResult.CANCELLED
        case UpstreamTimeout():
            return AttemptResult.TIMEOUT
        case UpstreamFault(status=status) if status < 500:  # noqa: PLR2004
            return AttemptResult.REFUSED
        case UpstreamFault():
            return AttemptResult.ERROR
        case _:
            return AttemptResult.CANCELLED
