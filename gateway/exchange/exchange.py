"""The way of an exchange, from admission to settlement.

Everything that may be cancelled (by the client's leaving, a deadline, a drain, a
revoked key) happens inside ``Life``'s block. Whatever was the first cause, the same
lines below the block tell the client and settle, exactly once.
"""

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import anyio

from gateway.admission.estimate import Estimate, Estimator, Prompt, prompts_in
from gateway.admission.leases import LeaseKeeper
from gateway.admission.ledger import Hold, Refused, Usage
from gateway.admission.reservation import Reservation
from gateway.errors import Draining, ModelNotAllowed, Overloaded
from gateway.exchange.answer import (
    check_is_event_stream,
    read_answer,
    read_to_end,
    take_arrived,
)
from gateway.exchange.ask import Ask
from gateway.exchange.capacity import Capacity
from gateway.exchange.charge import Ending, charge
from gateway.exchange.client import Client
from gateway.exchange.rates import rate_headers
from gateway.exchange.record import Spent, record_tokens
from gateway.providers.provider import Call, Endpoint, Upstream
from gateway.routing.attempt import Attempt, Attempts
from gateway.routing.refusal import redact
from gateway.routing.router import Candidate, Router
from gateway.telemetry.metrics import Ended, Metrics
from streaming.deadlines import Clock, Deadlines, Pulse, Wait
from streaming.dialects.reading import Dialect
from streaming.errors import (
    ClientDisconnected,
    ClientStalled,
    Fault,
    LocalFault,
    UpstreamFault,
    UpstreamOverrun,
    UpstreamReported,
    UpstreamTimeout,
)
from streaming.life import Life
from streaming.outcome import Outcome
from streaming.pump import Pump, catch_up
from streaming.sse import Framer
from streaming.stages.metering import Meter
from streaming.stages.usage_view import UsageView
from streaming.stages.verdict import Verdict
from streaming.ticker import Ticker

_log = logging.getLogger(__name__)

LAST_FRAME_SECONDS = 1.0
"""How long an error may take to be written to a client."""
REUSE_SECONDS = 0.05
"""How long a provider may take to end its body after ``[DONE]``."""
_NOBODY = "none"
_PROMPTS = {
    Endpoint.CHAT_COMPLETIONS: Prompt.MESSAGES,
    Endpoint.COMPLETIONS: Prompt.PROMPT,
    Endpoint.EMBEDDINGS: Prompt.INPUT,
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one exchange may take, in bytes and in seconds."""

    max_event_bytes: int
    max_response_bytes: int
    deadlines: Deadlines


@dataclass(slots=True)
class Exchanges:
    """What all exchanges share; made by the composition root.

    Attributes:
        estimators: By public model name.
        dialects: By endpoint.
        draining: No new exchange may begin.
        ended: How many ended, by outcome.
        charged: Tokens of all of them.
    """

    router: Router
    attempts: Attempts
    estimators: Mapping[str, Estimator]
    dialects: Mapping[Endpoint, Dialect]
    keeper: LeaseKeeper
    ticker: Ticker
    metrics: Metrics
    bounds: Bounds
    capacity: Capacity
    clock: Clock
    draining: bool = False
    ended: Counter[Outcome] = field(default_factory=Counter)
    charged: int = 0

    def check_room(self) -> None:
        """Return if one more exchange may begin.

        Raises:
            Draining: None may.
            Overloaded: As many are live as may be, or the event loop is late.
        """
        if self.draining:
            raise Draining(retry_after_seconds=1.0)
        if (
            self.live >= self.capacity.exchanges
            or self.ticker.sustained_lag_seconds > self.capacity.lag_seconds
        ):
            raise Overloaded(retry_after_seconds=1.0)

    def begin(self, ask: Ask, client: Client) -> "Exchange":
        """A new exchange, for a model that exists and that its key may use.

        Raises:
            Draining, Overloaded: As ``check_room``.
            ModelNotFound: The model is not configured.
            ModelNotAllowed: The key may not use it.
        """
        self.check_room()
        candidates = self.router.candidates(ask.model)
        if not ask.principal.may_use(ask.model):
            raise ModelNotAllowed(param="model")
        return Exchange(self, ask, client, candidates)

    @property
    def live(self) -> int:
        """Exchanges that have not ended."""
        return len(self.ticker)

    def end_all(self, fault: Fault) -> None:
        """End every live exchange for this reason."""
        for life in self.ticker.lives:
            life.end(fault)


class Exchange:
    """One exchange; ``run`` is its whole story.

    Args:
        shared: What it shares with all others.
        ask: What the client wants.
        client: Where the answer goes.
        candidates: Who may answer, in order of preference.
    """

    def __init__(
        self,
        shared: Exchanges,
        ask: Ask,
        client: Client,
        candidates: Sequence[Candidate],
    ) -> None:
        now = shared.clock()
        self._shared = shared
        self._ask = ask
        self._client = client
        self._candidates = candidates
        self._started_at = now
        self._left_at: float | None = None
        self._estimator = shared.estimators[ask.model]
        self._meter = Meter(self._estimator.tokenizer.encode)
        self._verdict = Verdict()
        self._pump: Pump | None = None
        self._heard_whole = False
        self._unread = b""
        self._prompt_tokens = 0
        self._prompts = 1
        self._charged: Usage | None = None
        self._provider = _NOBODY
        self._life = Life(Pulse(shared.bounds.deadlines, now))

    async def run(self) -> None:
        """Serve, tell the client how it ended, settle."""
        shared = self._shared
        shared.ticker.watch(self._life, self._client)
        reservation = shared.keeper.reservation(self._life)
        try:
            async with reservation:
                with self._life:
                    await self._serve_or_blame(reservation)
                await self._note_close(reservation)
                await catch_up(self._meter)
                self._forgive()
                await self._tell()
        finally:
            shared.ticker.forget(self._life)
            self._record(reservation)

    def leave(self) -> None:
        """The client has left; after its whole answer that is no news."""
        if not self._life.completed and not self._client.answered:
            self._left_at = self._shared.clock()
            self._life.end(ClientDisconnected())

    async def _serve_or_blame(self, reservation: Reservation) -> None:
        try:
            await self._serve(reservation)
        except Fault as fault:
            self._life.blame(fault)
            if isinstance(fault, UpstreamOverrun):
                self._shared.metrics.degraded("overrun")
        except Exception:  # noqa: BLE001 - whatever it is, the client is told and it is settled
            _log.exception("exchange %s failed", self._ask.request_id)
            self._life.blame(LocalFault("The gateway failed."))

    async def _serve(self, reservation: Reservation) -> None:
        shared = self._shared
        estimate = await self._estimate()
        try:
            rates = await reservation.hold(self._hold(estimate))
        except Fault as fault:
            if isinstance(fault.__cause__, Refused):
                self._client.describe(rate_headers(fault.__cause__))
            raise
        self._client.describe(rate_headers(rates))
        reservation.charge_by(self._charge, self._meter.known_progress)
        now = shared.clock()
        shared.metrics.overhead_seconds.observe(now - self._started_at)
        if self._ask.stream:
            self._life.pulse.wait_for(Wait.FIRST_BYTE, now)
        async with shared.attempts.open(
            self._call(estimate, reservation.dispatch),
            self._candidates,
            self._life,
            self._ask.session,
        ) as attempt:
            self._ask = self._ask.without_body()
            self._introduce(attempt)
            try:
                if self._ask.stream:
                    await self._relay(attempt, reservation)
                else:
                    await self._relay_whole(attempt.upstream)
            except UpstreamReported as fault:
                redact(fault, attempt.candidate.provider)
                raise

    async def _estimate(self) -> Estimate:
        """What the request may cost, and what of it a charge will need."""
        ask, prompt = self._ask, _PROMPTS[self._ask.endpoint]
        most = ask.principal.limits.max_output_tokens
        estimate = await self._estimator.estimate(ask.body, most, prompt)
        self._prompts = prompts_in(ask.body, prompt)
        self._prompt_tokens = estimate.prompt_tokens
        self._meter.most = estimate.completion_tokens
        return estimate

    async def _relay(self, attempt: Attempt, reservation: Reservation) -> None:
        upstream, shared = attempt.upstream, self._shared
        await check_is_event_stream(upstream)
        running = attempt.candidate.provider.reports_progress
        pump = self._pump = Pump(
            Framer(shared.bounds.max_event_bytes),
            shared.dialects[self._ask.endpoint],
            self._meter,
            self._verdict,
            UsageView(self._ask.usage, running=running),
        )
        try:
            with shared.metrics.active_streams.track_inprogress():
                await pump.run(
                    upstream.body, self._client, self._life, reservation, shared.clock
                )
        finally:
            if self._life.ended:
                self._unread = await take_arrived(upstream)  # noqa: ASYNC102 - is in a scope of its own that never waits
        self._life.complete()
        self._life.pulse.wait_for(Wait.CLIENT, shared.clock())
        await self._client.aclose()
        self._life.pulse.wait_for(Wait.NOTHING, shared.clock())
        await read_to_end(upstream, REUSE_SECONDS)

    async def _relay_whole(self, upstream: Upstream) -> None:
        shared = self._shared
        dialect = shared.dialects[self._ask.endpoint]
        most = shared.bounds.max_response_bytes
        body, reading = await read_answer(upstream, dialect, most)
        self._meter.note(reading)
        self._heard_whole = True
        self._life.pulse.wait_for(Wait.CLIENT, shared.clock())
        await self._client.answer({"content-type": "application/json"}, body)
        self._life.complete()

    def _forgive(self) -> None:
        """A stream that had succeeded when its time was up has succeeded."""
        match self._life.cause:
            case UpstreamTimeout() if self._verdict.complete:  # then it was silent
                self._life.complete()
            case Draining() if self._verdict.complete and self._verdict.done:
                self._life.complete()

    async def _tell(self) -> None:
        """Tell the client how it ended, where it has not been told."""
        client, cause = self._client, self._life.cause
        if client.answered:
            return
        if isinstance(cause, ClientStalled):
            client.abort()
        elif not isinstance(cause, ClientDisconnected):
            with anyio.move_on_after(LAST_FRAME_SECONDS) as scope:
                if cause is None or isinstance(cause, UpstreamFault | Draining):
                    await self._give_rest()
                await (client.aclose() if cause is None else client.fail(cause))
            if scope.cancelled_caught:
                client.abort()

    async def _give_rest(self) -> None:
        if self._pump is not None and (rest := self._pump.take_rest()):
            await self._client.send(rest)

    def _charge(self) -> Usage | None:
        pump = self._pump
        if pump is not None:
            pump.account_for(self._unread)  # it was generated, shown or not
        ending = Ending(
            stream=self._ask.stream,
            cause=self._life.cause,
            heard=self._heard_whole or (pump is not None and pump.started),
            shown=pump is not None and pump.shown,
            prompt_tokens=self._prompt_tokens,
            prompts=self._prompts,
        )
        self._charged = charge(ending, self._meter)
        return self._charged

    def _introduce(self, attempt: Attempt) -> None:
        """Say who answers."""
        self._provider = attempt.candidate.provider.name
        self._client.describe({
            "x-gateway-provider": self._provider,
            "x-gateway-model": attempt.candidate.model,
            "x-gateway-attempts": str(attempt.number),
        })

    def _hold(self, estimate: Estimate) -> Hold:
        return Hold(
            id=secrets.token_hex(16),
            principal=self._ask.principal.id,
            model=self._ask.model,
            prompt_tokens=estimate.prompt_tokens,
            completion_tokens=estimate.completion_tokens,
            stream=self._ask.stream,
        )

    def _call(self, estimate: Estimate, on_send: Callable[[], None]) -> Call:
        return Call(
            endpoint=self._ask.endpoint,
            members=self._ask.members,
            stream=self._ask.stream,
            request_id=self._ask.request_id,
            default_cap=estimate.default_cap,
            on_send=on_send,
        )

    async def _note_close(self, reservation: Reservation) -> None:
        if self._left_at is not None and reservation.dispatched:
            # A socket is closed in the loop's next turn: before anything is counted.
            await anyio.lowlevel.cancel_shielded_checkpoint()
            closed_in = self._shared.clock() - self._left_at
            self._shared.metrics.upstream_close_seconds.observe(closed_in)

    def _record(self, reservation: Reservation) -> None:
        cause = self._life.cause
        if reservation.was_held:
            outcome = Outcome.COMPLETED if cause is None else cause.outcome
            self._shared.ended[outcome] += 1
            self._shared.metrics.exchange(
                Ended(
                    model=self._ask.model,
                    provider=self._provider,
                    mode=self._ask.mode,
                    outcome=outcome,
                    seconds=self._shared.clock() - self._started_at,
                )
            )
            if self._charged is not None:
                self._shared.charged += self._charged.total
            spent = Spent(
                model=self._ask.model,
                provider=self._provider,
                charged=self._charged,
                complete=cause is None,
                started_at=self._started_at,
            )
            record_tokens(self._shared.metrics, self._meter, spent)
            if self._pump is not None:
                self._shared.metrics.backpressure_seconds.inc(self._pump.send_seconds)
        elif cause is not None and not isinstance(cause, ClientDisconnected):
            self._shared.metrics.rejection(cause.code)
