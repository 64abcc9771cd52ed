"""The pump: from a provider's byte stream, through the stages, to the client.

One task carries a stream from end to end; awaiting ``client.send`` is the
back-pressure, because nothing is read from the provider meanwhile::

    provider ─ receive() ─► Framer ─► Dialect ─► stages ─► gate ─► send() ─► client
       ▲                                                             │
       └───────────── not read while the client has not taken ◄──────┘
"""

from collections.abc import Sequence
from typing import Protocol

import anyio
from anyio.abc import ByteReceiveStream, ObjectSendStream
from anyio.lowlevel import checkpoint

from streaming.deadlines import Clock, Wait
from streaming.dialects.reading import Dialect
from streaming.dialects.untyped import is_whole
from streaming.errors import (
    ClientDisconnected,
    UpstreamFault,
    UpstreamOverrun,
)
from streaming.life import Life
from streaming.sse import Frame, Framer
from streaming.stage import Batch, Stage, read
from streaming.stages.metering import Meter
from streaming.stages.usage_view import UsageView
from streaming.stages.verdict import Verdict

READ_BYTES = 16_384
"""Taken at a time: a client that does not read makes one batch of it wait, as bytes, as
frames and as what was read in them, which is several times as much."""
MANY_EVENTS = 256
"""Of one read that are no run: some 2 ms of work."""
LAST_WORDS_SECONDS = 1.0
"""After an error the provider may still report usage; this long it is listened to."""


class Gate(Protocol):
    """Keeps the relay behind what the ledger has been told may be relayed."""

    @property
    def quiet_to(self) -> int:
        """Completion tokens up to which the relay need not ask; -1: it always must."""
        ...

    async def pass_to(self, tokens: int) -> None:
        """Wait until this many completion tokens may be relayed."""
        ...


async def catch_up(meter: Meter) -> None:
    """Count a long text slice by slice, and let others run in between."""
    while meter.is_behind:
        meter.catch_up()
        await checkpoint()


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
            try:
                data = await upstream.receive(READ_BYTES)
            except (anyio.EndOfStream, UpstreamFault) as end:
                batch = self._last_batch(clock())
                await self._deliver(batch, client, life, gate, clock)
                self._judge(end)
                return
            now = clock()
            pulse.wait_for(Wait.NOTHING, now)
            batch = self._staged(self._framer.feed_runs(data), now)
            if batch:
                await self._deliver(batch, client, life, gate, clock)
                if self._meter.overran() and not self._verdict.complete:
                    raise UpstreamOverrun
            elif life.ended:
                raise ClientDisconnected
            else:
                pulse.wait_for(Wait.NEXT_BYTES, now)
            del data, batch  # while it waits, a stream holds nothing
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
        if not frames:
            return []
        batch = read(self._dialect, frames[0])
        for frame in frames[1:]:  # all of a read are one run, nearly always
            batch += read(self._dialect, frame)
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
        if len(batch) > MANY_EVENTS:
            await checkpoint()  # others have waited while they were read
        # A relay that never really waits would never see its cancellation.
        if life.ended:
            raise ClientDisconnected
        meter = self._meter
        if meter.is_behind:
            await catch_up(meter)
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
        life.pulse.wait_for(Wait.NEXT_BYTES, now)
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
