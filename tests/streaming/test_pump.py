"""The pump: a script in, a record out, no socket and no sleeping."""

from typing import override

import anyio
import pytest

from streaming.deadlines import Deadlines, Pulse, Wait
from streaming.dialects.chat import ChatDialect
from streaming.errors import (
    ClientDisconnected,
    ClientStalled,
    Fault,
    UpstreamInvalid,
    UpstreamOverrun,
    UpstreamReported,
    UpstreamTimeout,
    UpstreamTruncated,
)
from streaming.life import Life
from streaming.pump import Pump
from streaming.sse import Framer
from streaming.stages.metering import Meter
from streaming.stages.usage_view import UsageView, UsageWish
from streaming.stages.verdict import Verdict
from streaming.testing import ManualClock, OpenGate, RecordingSink, ScriptedSource
from streaming.ticker import Ticker

pytestmark = pytest.mark.anyio

HELLO = b'data: {"choices":[{"index":0,"delta":{"content":"hello there"}}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
ERROR = b'data: {"error":{"message":"bad","code":400}}\n\n'
DONE = b"data: [DONE]\n\n"


class Listener:
    """A client for a ticker: notes heartbeats, has so much unsent."""

    def __init__(self) -> None:
        self.beats = 0
        self.unsent = 0

    def beat(self) -> None:
        self.beats += 1

    def unsent_bytes(self) -> int:
        return self.unsent


class Rig:
    """A pump with everything around it."""

    def __init__(self, *, max_event_bytes: int = 1 << 20) -> None:
        self.clock = ManualClock()
        self.meter = Meter(str.split)
        self.verdict = Verdict()
        self.sink = RecordingSink()
        self.gate = OpenGate()
        self.life = Life(Pulse(Deadlines(), self.clock.now))
        self.pump = Pump(
            Framer(max_event_bytes),
            ChatDialect(),
            self.meter,
            self.verdict,
            UsageView(UsageWish.NONE, running=True),
        )

    async def run(self, source: ScriptedSource) -> Fault | None:
        with self.life:
            try:
                await self.pump.run(source, self.sink, self.life, self.gate, self.clock)
            except Fault as fault:
                self.life.blame(fault)
        return self.life.cause


async def test_pump_relays_bytes_when_the_stream_is_whole() -> None:
    rig = Rig()
    wire = HELLO + HELLO + FINISH + USAGE + DONE
    assert await rig.run(ScriptedSource(wire[:70], wire[70:200], wire[200:])) is None
    assert rig.sink.wire == HELLO + HELLO + FINISH + DONE
    assert rig.meter.completion_tokens() == 2


async def test_pump_sends_one_batch_when_one_read_completes_many_events() -> None:
    rig = Rig()
    await rig.run(ScriptedSource(HELLO + HELLO, FINISH + DONE))
    assert rig.sink.batches == [[HELLO + HELLO], [FINISH, DONE]]


async def test_pump_stops_reading_when_done_has_come() -> None:
    rig = Rig()
    source = ScriptedSource(HELLO, DONE, HELLO, hang=True)
    assert await rig.run(source) is None
    assert source.reads == 2


async def test_pump_blames_the_provider_when_the_stream_ends_early() -> None:
    rig = Rig()
    assert isinstance(await rig.run(ScriptedSource(HELLO)), UpstreamTruncated)
    assert rig.sink.wire == HELLO


async def test_pump_blames_the_provider_when_an_event_is_torn() -> None:
    rig = Rig()
    cause = await rig.run(ScriptedSource(HELLO, HELLO[:40], UpstreamTruncated()))
    assert isinstance(cause, UpstreamTruncated)
    assert rig.sink.wire == HELLO


async def test_pump_forwards_the_last_event_when_only_its_blank_line_is_missing() -> (
    None
):
    rig = Rig()
    assert await rig.run(ScriptedSource(HELLO, FINISH.rstrip())) is None
    assert rig.sink.wire == HELLO + FINISH


async def test_pump_succeeds_when_the_end_is_unclean_after_a_finish() -> None:
    rig = Rig()
    assert await rig.run(ScriptedSource(HELLO, FINISH, UpstreamTruncated())) is None


async def test_pump_charges_late_usage_and_shows_nothing_when_an_error_came() -> None:
    rig = Rig()
    cause = await rig.run(ScriptedSource(HELLO + ERROR, USAGE + DONE))
    assert isinstance(cause, UpstreamReported)
    assert cause.status == 400
    assert rig.sink.wire == HELLO
    assert rig.meter.usage is not None
    assert rig.meter.usage.prompt_tokens == 3


async def test_pump_delivers_what_came_before_when_an_event_is_too_large() -> None:
    rig = Rig(max_event_bytes=100)
    cause = await rig.run(ScriptedSource(HELLO + b"data: " + b"x" * 200, hang=True))
    assert isinstance(cause, UpstreamInvalid)
    assert rig.sink.wire == HELLO


async def test_pump_asks_the_gate_when_tokens_are_to_be_relayed() -> None:
    rig = Rig()
    await rig.run(ScriptedSource(HELLO, HELLO, DONE))
    assert rig.gate.asked == [2, 3, 3]  # "hello therehello there" is three words


async def test_pump_stops_when_the_client_left_and_nothing_ever_waits() -> None:
    rig = Rig()

    class Endless(ScriptedSource):
        @override
        async def receive(self, max_bytes: int = 65_536) -> bytes:
            self.reads += 1
            if self.reads == 5:
                rig.life.cause = ClientDisconnected()
            return HELLO

    source = Endless()
    assert isinstance(await rig.run(source), ClientDisconnected)
    assert source.reads == 5
    assert len(rig.sink.batches) == 4


async def test_pump_reads_no_further_when_the_client_does_not_take() -> None:
    rig = Rig()
    source = ScriptedSource(HELLO, HELLO, HELLO, hang=True)
    rig.sink.takes = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.run, source)
        await anyio.wait_all_tasks_blocked()
        assert source.reads == 1
        assert rig.life.pulse.waits_for is Wait.CLIENT
        rig.life.end(ClientStalled())
    assert isinstance(rig.life.cause, ClientStalled)


async def test_pump_accounts_for_what_was_read_but_not_relayed() -> None:
    rig = Rig()
    await rig.run(ScriptedSource(HELLO, UpstreamTruncated()))
    rig.pump.account_for(HELLO + HELLO)
    assert rig.meter.completion_tokens() > 2


async def test_pump_cuts_when_the_provider_generates_more_than_it_was_allowed() -> None:
    rig = Rig()
    rig.meter.most = 2
    over = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}],"usage":%b}\n\n'
    usage = b'{"prompt_tokens":1,"completion_tokens":3}'
    source = ScriptedSource(HELLO, over % usage, HELLO, hang=True)
    assert isinstance(await rig.run(source), UpstreamOverrun)
    assert len(rig.sink.batches) == 2
    assert rig.meter.completion_tokens() == 3


async def test_pump_believes_its_own_count_when_it_is_twice_the_allowance() -> None:
    rig = Rig()
    rig.meter.most = 2
    word = b'data: {"choices":[{"index":0,"delta":{"content":"x "}}]}\n\n'
    assert isinstance(await rig.run(ScriptedSource(*[word] * 100)), UpstreamOverrun)
    assert rig.meter.completion_tokens() == 2 * 2 + 64 + 1


async def test_life_keeps_the_first_cause_when_several_come() -> None:
    life = Life(Pulse(Deadlines(), 0.0))
    first = UpstreamTruncated()
    with life:
        life.end(first)
        life.end(ClientDisconnected())
        await anyio.sleep_forever()
    assert life.cause is first


async def test_life_has_no_cause_when_it_was_complete_before() -> None:
    life = Life(Pulse(Deadlines(), 0.0))
    life.complete()
    life.end(ClientDisconnected())
    assert life.cause is None


DEADLINES = Deadlines(
    first_byte_seconds=6.0,
    idle_seconds=3.0,
    write_stall_seconds=2.0,
    total_seconds=100.0,
    heartbeat_seconds=1.0,
)


@pytest.mark.parametrize(
    ("wait", "seconds", "fault"),
    [
        (Wait.FIRST_BYTE, 6.0, UpstreamTimeout),
        (Wait.NEXT_BYTES, 3.0, UpstreamTimeout),
        (Wait.CLIENT, 2.0, ClientStalled),
        (Wait.NOTHING, 100.0, UpstreamTimeout),
    ],
)
async def test_ticker_ends_an_exchange_when_its_time_is_up_and_not_before(
    wait: Wait, seconds: float, fault: type[Fault]
) -> None:
    clock = ManualClock()
    ticker = Ticker(clock)
    life = Life(Pulse(DEADLINES, clock.now))
    life.pulse.wait_for(wait, clock.now)
    ticker.watch(life, Listener())
    clock.move(seconds - 0.001)
    ticker.tick()
    assert life.cause is None
    clock.move(0.001)
    ticker.tick()
    assert isinstance(life.cause, fault)


async def test_ticker_beats_when_the_client_hears_nothing_and_is_not_stuck() -> None:
    clock = ManualClock()
    ticker = Ticker(clock)
    life = Life(Pulse(DEADLINES, clock.now))
    listener = Listener()
    ticker.watch(life, listener)
    life.pulse.wait_for(Wait.NEXT_BYTES, clock.now)
    beats = []
    for _ in range(5):
        clock.move(0.5)
        ticker.tick()
        beats.append(listener.beats)
    assert beats == [0, 1, 1, 2, 2]
    life.pulse.wait_for(Wait.CLIENT, clock.now)
    clock.move(1.5)
    ticker.tick()
    assert listener.beats == 2


async def test_ticker_has_patience_when_a_slow_client_makes_progress() -> None:
    clock = ManualClock()
    ticker = Ticker(clock)
    life = Life(Pulse(DEADLINES, clock.now))
    listener = Listener()
    ticker.watch(life, listener)
    life.pulse.wait_for(Wait.CLIENT, clock.now)
    for unsent in (90, 80, 70, 60, 60):
        listener.unsent = unsent
        clock.move(1.5)
        ticker.tick()
    assert life.cause is None
    clock.move(0.5)
    ticker.tick()
    assert isinstance(life.cause, ClientStalled)


async def test_ticker_forgets_an_exchange_when_told_to() -> None:
    clock = ManualClock()
    ticker = Ticker(clock)
    life = Life(Pulse(DEADLINES, clock.now))
    ticker.watch(life, Listener())
    ticker.forget(life)
    clock.move(1000.0)
    ticker.tick()
    assert life.cause is None
    assert not ticker.lives
