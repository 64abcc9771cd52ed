"""Attempts: one candidate after another, until one begins to answer.

The next candidate is asked only before the first byte of an answer, and only after a
fault that says the request was not accepted (``Fault.try_next``). One reservation
covers all attempts of an exchange.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self, override

import anyio
from anyio.abc import ByteReceiveStream

from gateway.errors import NoHealthyProvider, Overloaded
from gateway.providers.provider import Call, Upstream
from gateway.routing.refusal import ERROR_BODY_BYTES, redact, refusal
from gateway.routing.router import Candidate
from gateway.telemetry.metrics import AttemptResult, Metrics
from streaming.errors import Fault, UpstreamFault, UpstreamTimeout
from streaming.pump import Life

_ERROR = 400
_ERROR_BODY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Attempt:
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
    """Opens attempts, within each provider's own bound.

    Args:
        most: Provider name to the exchanges it may have at a time; absent: unbounded.
        metrics: Told the result of every attempt.
    """

    def __init__(self, most: Mapping[str, int], metrics: Metrics) -> None:
        self._most = most
        self._metrics = metrics
        self._open: Counter[str] = Counter()

    def open(
        self, call: Call, candidates: Sequence[Candidate], life: Life
    ) -> AbstractAsyncContextManager[Attempt]:
        """Hold the first answer that begins open for the length of the block.

        Raises:
            Fault: The last candidate's, when none answered.
        """
        return _FirstAnswer(self, call, candidates, life)

    def take(self, provider: str) -> None:
        """Take a place at a provider.

        Raises:
            Overloaded: It has as many exchanges as it may.
        """
        if self._open[provider] >= self._most.get(provider, 1 << 31):
            raise Overloaded(retry_after_seconds=1.0)
        self._open[provider] += 1

    def leave(self, provider: str, result: AttemptResult) -> None:
        """Give the place back."""
        self._open[provider] -= 1
        self._metrics.attempt(provider, result)


class _Place:
    """A place at a provider, taken for the length of an attempt."""

    def __init__(self, attempts: Attempts, provider: str, life: Life) -> None:
        self._attempts = attempts
        self._provider = provider
        self._life = life

    def __enter__(self) -> Self:
        self._attempts.take(self._provider)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._attempts.leave(self._provider, _result(exc, self._life))


class _FirstAnswer(AbstractAsyncContextManager[Attempt]):
    def __init__(
        self,
        attempts: Attempts,
        call: Call,
        candidates: Sequence[Candidate],
        life: Life,
    ) -> None:
        self._attempts = attempts
        self._call = call
        self._candidates = candidates
        self._life = life
        self._stack = AsyncExitStack()

    @override
    async def __aenter__(self) -> Attempt:
        last: Fault = NoHealthyProvider(retry_after_seconds=1.0)
        number = 0
        for candidate in self._candidates:
            stack = AsyncExitStack()
            try:
                async with stack:
                    stack.enter_context(
                        _Place(self._attempts, candidate.provider.name, self._life)
                    )
                    number += 1
                    upstream = await stack.enter_async_context(
                        candidate.provider.open(self._call, candidate.model)
                    )
                    if upstream.status >= _ERROR:
                        refused = await _read_refusal(upstream)
                        redact(refused, candidate.provider)
                        raise refused
                    self._stack = stack.pop_all()
            except Fault as fault:
                last = fault
                if not fault.try_next:
                    break
            else:
                return Attempt(candidate, upstream, number + upstream.attempts - 1)
        raise last

    @override
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._stack.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102 - closing an upstream never waits


async def _read_refusal(upstream: Upstream) -> UpstreamFault:
    body = await _read_some(upstream.body)
    return refusal(upstream.status, upstream.headers, body)


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
