"""The pump: from a provider's byte stream, through the stages, to the client.

This is the only file of the package that awaits. One task carries a stream from end to
end; awaiting ``client.send`` is the back-pressure, because nothing is read from the
provider meanwhile::

    provider ─ receive() ─► Framer ─► Dialect ─► stages ─► gate ─► send() ─► client
       ▲                                                             │
       └───────────── not read while the client has not taken ◄──────┘
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self, override

import anyio
from anyio.abc import ByteReceiveStream, ObjectSendStream

from streaming.deadlines import Pulse, Wait
from streaming.dialects.reading import Dialect
from streaming.dialects.untyped import is_whole
from streaming.errors import (
    ClientDisconnected,
    ClientStalled,
    Fault,
    UpstreamFault,
    UpstreamOverrun,
    UpstreamSilent,
)
from streaming.sse import Frame, Framer
from streaming.stage import Batch, Event, Stage
from streaming.stages.metering import Meter
from streaming.stages.usage_view import UsageView
from streaming.stages.verdict import Verdict

type Clock = Callable[[], float]

TICK_SECONDS = 0.1
LAST_WORDS_SECONDS = 1.0
"""After an error the provider may still report usage; this long it is listened to."""


class Life(AbstractContextManager["Life"]):
    """One exchange's life: what may end it, and the first thing that did.

    Whatever ends an exchange from outside (its client left, its time ran out, the
    gateway drains) calls ``end`` with the fault to blame. The block is cancelled and
    swallows that cancellation: what follows the block reads ``cause``.

    Args:
        pulse: What the exchange waits for.

    Attributes:
        on_trial: The scope of a provider that has not begun its answer.
    """

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse
        self.cause: Fault | None = None
        self.completed = False
        self._scope = anyio.CancelScope()
        self.on_trial: anyio.CancelScope | None = None

    def blame(self, fault: Fault) -> None:
        """This ended the exchange, unless something else did before.

        Of a whole answer only its reader can still be a cause, by not taking the rest.
        """
        if self.cause is None and (
            not self.completed or isinstance(fault, ClientStalled)
        ):
            self.cause = fault

    def end(self, fault: Fault) -> None:
        """End the block for this reason, unless there is one already.

        A provider that is silent while it is on trial ends the trial alone.
        """
        if isinstance(fault, UpstreamSilent) and self.on_trial is not None:
            self.on_trial.cancel()
            return
        self.blame(fault)
        self._scope.cancel()

    def trial(self) -> "Trial":
        """A block in which a provider may begin its answer, or be left for another."""
        return Trial(self)

    def complete(self) -> None:
        """The answer is whole and has been handed over, whatever happens meanwhile."""
        self.completed = True
        self.cause = None

    @property
    def ended(self) -> bool:
        """Whether the exchange was told to end."""
        return self.cause is not None

    @override
    def __enter__(self) -> Self:
        self._scope.__enter__()
        return self

    @override
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._scope.__exit__(exc_type, exc, traceback)


class Trial(AbstractContextManager[None]):
    """A provider's chance to begin its answer.

    Raises:
        UpstreamSilent: On leaving, when it did not in time.
    """

    def __init__(self, life: Life) -> None:
        self._life = life
        self._scope = anyio.CancelScope()

    @override
    def __enter__(self) -> None:
        self._scope.__enter__()
        self._life.on_trial = self._scope

    @override
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._life.on_trial = None
        swallowed = self._scope.__exit__(exc_type, exc, traceback)
        if self._scope.cancelled_caught:
            raise UpstreamSilent
        return swallowed


class Gate(Protocol):
    """Keeps the relay behind what the ledger has been told may be relayed."""

    @property
    def quiet_to(self) -> int:
        """Completion tokens up to which the relay need not ask; -1: it always must."""
        ...

    async def pass_to(self, tokens: int) -> None:
        """Wait until this many completion tokens may be relayed."""
        ...


class Pump:
    """Relays one stream.

    Args:
        framer: Cuts the provider's bytes.
        dialect: Reads the frames.
        meter: Counts them; the first stage.
        verdict: Knows how the stream ended; the second stage.
        view: What the client may see of usage; the last stage.

    Attributes:
        started: Whether an event has come from the provider.
        shown: Whether one was handed to the client.
        send_seconds: Time spent waiting for the client to take what it was sent.
    """

    def __init__(
        self,
        framer: Framer,
        dialect: Dialect,
        meter: Meter,
        verdict: Verdict,
        view: UsageView,
    ) -> None:
        self._framer = framer
        self._dialect = dialect
        self._meter = meter
        self._verdict = verdict
        self._stages: Sequence[Stage] = (meter, verdict, view)
        self._untaken: Batch = []
        self.started = False
        self.shown = False
        self.send_seconds = 0.0

    async def run(
        self,
        upstream: ByteReceiveStream,
        client: ObjectSendStream[Batch],
        life: Life,
        gate: Gate,
        clock: Clock,
    ) -> None:
        """Relay until the stream is over.

        Raises:
            UpstreamFault: The provider failed; what came before it has been sent.
            UpstreamOverrun: It generated more than it was allowed; all of that has
                been sent, up to the event that went beyond.
            ClientDisconnected: The client left.
        """
        pulse = life.pulse
        while not (self._verdict.over or self._framer.fault):
            if life.ended:  # while a batch was sent: the next need not be parsed
                raise ClientDisconnected
            try:
                data = await upstream.receive()
            except (anyio.EndOfStream, UpstreamFault) as end:
                batch = self._last_batch(clock())
                await self._deliver(batch, client, life, gate, clock)
                self._judge(end)
                return
            now = clock()
            pulse.wait_for(Wait.NOTHING, now)
            batch = self._staged(self._framer.feed(data), now)
            if batch:
                await self._deliver(batch, client, life, gate, clock)
                if self._meter.overran() and not self._verdict.complete:
                    raise UpstreamOverrun
            pulse.wait_for(Wait.NEXT_BYTES, clock())
        await self._deliver(self._flushed(), client, life, gate, clock)
        if self._framer.fault is not None:
            raise self._framer.fault
        if self._verdict.fault is not None:
            life.blame(self._verdict.fault)  # not whatever happens while we listen
            await self._hear_last_words(upstream)
            raise self._verdict.fault

    def take_rest(self) -> Batch:
        """Whole events the client has not been given though nothing forbids it.

        It did not take them in time, or they waited for what would follow.
        """
        untaken, self._untaken = self._untaken, []
        return [*untaken, *self._flushed()]

    def account_for(self, unread: bytes) -> None:
        """Meter what has arrived from the provider but will not be relayed."""
        for frame in self._framer.feed(unread):
            self._meter.note(self._dialect.read(frame.data))

    def _staged(self, frames: Sequence[Frame], now: float) -> Batch:
        read = self._dialect.read
        batch = [Event(frame, read(frame.data)) for frame in frames]
        if not batch:
            return batch
        self.started = True
        for stage in self._stages:
            batch = stage.apply(batch, now)
        return batch

    def _last_batch(self, now: float) -> Batch:
        """The event without a blank line, if it is one, and all that waited."""
        tail = self._framer.close()
        batch: Batch = []
        if tail is not None and is_whole(tail.data):
            batch = self._staged([tail], now)
        return [*batch, *self._flushed()]

    def _flushed(self) -> Batch:
        return [event for stage in self._stages for event in stage.flush()]

    async def _deliver(
        self,
        batch: Batch,
        client: ObjectSendStream[Batch],
        life: Life,
        gate: Gate,
        clock: Clock,
    ) -> None:
        if not batch:
            return
        # A relay that never really waits would never see its cancellation.
        if life.ended:
            raise ClientDisconnected
        meter = self._meter
        if meter.progress_at_most() > gate.quiet_to:
            await gate.pass_to(meter.completion_tokens())
        started = clock()
        life.pulse.wait_for(Wait.CLIENT, started)
        self.shown = True
        self._untaken = batch  # unless it returns: a send that is cut off sent nothing
        await client.send(batch)
        self._untaken = []
        now = clock()
        self.send_seconds += now - started
        life.pulse.wait_for(Wait.NOTHING, now)
        life.pulse.client_fed_at = now

    def _judge(self, end: Exception) -> None:
        if (fault := self._verdict.truncation()) is not None:
            raise fault from end

    async def _hear_last_words(self, upstream: ByteReceiveStream) -> None:
        with anyio.move_on_after(LAST_WORDS_SECONDS):
            while not self._meter.done:
                try:
                    data = await upstream.receive()
                except (anyio.EndOfStream, UpstreamFault):
                    return
                self.account_for(data)


class Watched(Protocol):
    """A client, as far as a ticker needs to know."""

    def beat(self) -> None:
        """Send a heartbeat, if one may be sent now."""

    def unsent_bytes(self) -> int:
        """What of the answer has not left this process."""


class Ticker:
    """Looks at all live exchanges a few times a second.

    One loop for the process: a timer per stream and token would cost more than the
    relay itself. A deadline is met at most ``TICK_SECONDS`` late, never early.

    Attributes:
        lag_seconds: How late the event loop ran the last tick.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.lag_seconds = 0.0
        self._lives: dict[Life, Watched] = {}
        self._emptied = anyio.Event()

    def watch(self, life: Life, client: Watched) -> None:
        """Keep an eye on this exchange."""
        self._lives[life] = client

    def forget(self, life: Life) -> None:
        """The exchange is over."""
        self._lives.pop(life, None)
        if not self._lives:
            self._emptied.set()

    async def idle(self) -> None:
        """Wait until no exchange is live."""
        while self._lives:
            self._emptied = anyio.Event()
            await self._emptied.wait()

    @property
    def lives(self) -> Sequence[Life]:
        """All live exchanges."""
        return tuple(self._lives)

    def tick(self) -> None:
        """End what is overdue, and let the silent ones beat."""
        now = self._clock()
        for life, client in tuple(self._lives.items()):
            if life.ended:
                continue
            if life.pulse.waits_for is Wait.CLIENT:
                life.pulse.note_unsent(client.unsent_bytes(), now)
            if (fault := life.pulse.overdue(now)) is not None:
                life.end(fault)
            elif life.pulse.heartbeat_due(now):
                life.pulse.client_fed_at = now
                client.beat()

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            due = self._clock() + TICK_SECONDS
            await anyio.sleep(TICK_SECONDS)
            self.lag_seconds = max(0.0, self._clock() - due)
            self.tick()
