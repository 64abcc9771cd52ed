"""One exchange from end to end, with a provider and a client that follow a script.

What is told and what is charged must agree, whatever ends it and whenever.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import override

import anyio
import msgspec
import pytest
from anyio import CapacityLimiter
from anyio.abc import ByteReceiveStream

from gateway.admission.estimate import Estimator
from gateway.admission.leases import LeaseKeeper
from gateway.admission.tokenizer import Tokenizer
from gateway.auth.principal import Principal
from gateway.errors import Draining, UpstreamUnreachable
from gateway.exchange.ask import Ask
from gateway.exchange.capacity import Capacity
from gateway.exchange.client import Client
from gateway.exchange.exchange import Bounds, Exchange, Exchanges
from gateway.providers.provider import Call, Endpoint, Provider, Upstream
from gateway.routing.attempt import Attempts
from gateway.routing.breaker import BreakerRule
from gateway.routing.router import Candidate, Router
from gateway.routing.standing import Rules, Standing
from gateway.telemetry.metrics import Metrics
from streaming.deadlines import Deadlines
from streaming.dialects.chat import ChatDialect
from streaming.errors import (
    ClientStalled,
    Fault,
    UpstreamReported,
    UpstreamTimeout,
    UpstreamTruncated,
)
from streaming.outcome import Outcome
from streaming.stage import Batch
from streaming.stages.usage_view import UsageWish
from streaming.testing import ManualClock, RecordingSink
from streaming.ticker import Ticker
from tests.contract.model_ledger import Books, ModelLedger

pytestmark = pytest.mark.anyio

BODY: Mapping[str, object] = {"messages": [{"role": "user", "content": "a b"}]}
PROMPT = 9
"""Of that, where a word is a token: a message is 3, 1 and 2, and the reply 3."""
WORD = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
ERROR = b'data: {"error":{"message":"no","code":500}}\n\n'
DONE = b"data: [DONE]\n\n"
EVENTS = {"content-type": "text/event-stream"}


class Arriving(ByteReceiveStream):
    """A body whose pieces are all here; it waits only after the last one."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self._pieces = iter(pieces)

    @override
    async def receive(self, max_bytes: int = 65_536) -> bytes:
        piece = next(self._pieces, None)
        if piece is None:
            await anyio.sleep_forever()
        if isinstance(piece, Exception):
            raise piece
        return piece or b""

    @override
    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()


class ScriptedProvider(Provider):
    """A provider that gives one answer, or cannot be reached.

    Attributes:
        closed: Its answer is no longer held open.
    """

    name = "scripted"
    reports_progress = False

    def __init__(self, answer: Upstream | Fault) -> None:
        self._answer = answer
        self.closed = False

    @override
    def redact(self, text: str) -> str:
        return text

    @override
    def open(self, call: Call, model: str) -> AbstractAsyncContextManager[Upstream]:
        return self._open(call)

    @asynccontextmanager
    async def _open(self, call: Call) -> AsyncIterator[Upstream]:
        if isinstance(self._answer, Fault):
            raise self._answer
        call.on_send()
        try:
            yield self._answer
        finally:
            self.closed = True


class RecordingClient(Client, RecordingSink):
    """A client that keeps what it is told; it takes while ``takes`` is set.

    Attributes:
        ends: Set: it takes the end of a stream.
        on_end: Called when it has taken it.
        told: The faults it was told of.
        ended: Its stream was ended properly.
        aborted: Its connection was cut.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends = anyio.Event()
        self.ends.set()
        self.on_end: Callable[[], None] = lambda: None
        self.told: list[Fault] = []
        self.ended = False
        self.aborted = False
        self._started = False

    @property
    @override
    def started(self) -> bool:
        return self._started

    @property
    @override
    def answered(self) -> bool:
        return self.ended or self.aborted

    @override
    def describe(self, headers: Mapping[str, str]) -> None:
        pass

    @override
    async def send(self, item: Batch) -> None:
        self._started = True
        await super().send(item)

    @override
    async def answer(self, headers: Mapping[str, str], body: bytes) -> None:
        self._started = True

    @override
    async def fail(self, fault: Fault) -> None:
        self._started = True
        self.told.append(fault)

    @override
    async def aclose(self) -> None:
        await self.ends.wait()
        self.ended = True
        self.on_end()

    @override
    def abort(self) -> None:
        self.aborted = True

    @override
    def beat(self) -> None:
        pass


def words(text: str) -> list[int]:
    return [0] * len(text.split())


class Rig:
    """Everything one exchange needs, and the exchange.

    Attributes:
        charged: Tokens; None while it is held, or when nothing ever was.
    """

    def __init__(self, answer: Upstream | Fault, *, stream: bool = True) -> None:
        self.clock = ManualClock()
        self.books = Books(self.clock)
        self._ledger = ModelLedger(self.books)
        self.client = RecordingClient()
        self.provider = ScriptedProvider(answer)
        self._keeper = LeaseKeeper(
            self._ledger, self.clock, lambda _: None, lambda _: None, list
        )
        self.shared = self._exchanges(Metrics())
        self.exchange = self._begin(stream=stream)

    async def run(self, then: Callable[["Rig"], None] = lambda _: None) -> None:
        """Run the exchange to its end; ``then`` is called once it waits."""
        await self._ledger.seed([Principal("team", "digest")])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keeper.run)
            async with anyio.create_task_group() as running:
                running.start_soon(self.exchange.run)
                await anyio.wait_all_tasks_blocked()
                then(self)
            tasks.cancel_scope.cancel()

    def leave(self) -> None:
        self.exchange.leave()

    def stall(self) -> None:
        self.shared.end_all(ClientStalled())

    def drain(self) -> None:
        self.shared.end_all(Draining())
        self.client.takes.set()

    @property
    def outcomes(self) -> Mapping[Outcome, int]:
        return dict(self.shared.ended)

    @property
    def charged(self) -> int:
        (record,) = self.books.accounts["team"].records.values()
        assert record.state in {"settled", "released"}
        return record.charged

    def _exchanges(self, metrics: Metrics) -> Exchanges:
        estimator = Estimator(Tokenizer("words", words), 100, CapacityLimiter(1))
        return Exchanges(
            router=Router({"m": [Candidate(self.provider, "theirs")]}),
            attempts=Attempts(
                Standing(Rules({}, 0.2, BreakerRule(5, 10.0, 5.0)), metrics, self.clock)
            ),
            estimators={"m": estimator},
            dialects={Endpoint.CHAT_COMPLETIONS: ChatDialect()},
            keeper=self._keeper,
            ticker=Ticker(self.clock),
            metrics=metrics,
            bounds=Bounds(65_536, 65_536, Deadlines()),
            capacity=Capacity(100, 1.0),
            clock=self.clock,
        )

    def _begin(self, *, stream: bool) -> Exchange:
        ask = Ask(
            principal=Principal("team", "digest"),
            endpoint=Endpoint.CHAT_COMPLETIONS,
            model="m",
            body=BODY,
            members={"model": msgspec.Raw(b'"m"')},
            stream=stream,
            usage=UsageWish.NONE,
            request_id="r",
        )
        return self.shared.begin(ask, self.client)


def events(*pieces: bytes | Exception) -> Upstream:
    return Upstream(200, EVENTS, Arriving(*pieces))


async def test_exchange_is_complete_when_the_stream_is() -> None:
    rig = Rig(events(WORD, WORD, DONE))
    await rig.run()
    assert rig.client.wire == WORD + WORD + DONE
    assert (rig.client.ended, rig.client.told) == (True, [])
    assert (rig.charged, rig.outcomes) == (PROMPT + 2, {Outcome.COMPLETED: 1})


async def test_leaving_is_no_news_after_the_whole_answer() -> None:
    rig = Rig(events(WORD, DONE))
    await rig.run()
    rig.leave()
    assert rig.outcomes == {Outcome.COMPLETED: 1}


async def test_all_that_had_arrived_is_charged_when_the_client_leaves() -> None:
    whole = 65_536 // len(WORD) * len(WORD)
    padding = b":" * (65_536 - whole - 1) + b"\n"
    rig = Rig(events(WORD, WORD * (whole // len(WORD)) + padding, WORD))
    rig.client.takes = anyio.Event()
    await rig.run(Rig.leave)
    assert (rig.client.wire, rig.client.told) == (b"", [])
    assert rig.provider.closed
    assert rig.charged == PROMPT + 1 + whole // len(WORD) + 1
    assert rig.outcomes == {Outcome.CLIENT_DISCONNECT: 1}


async def test_nothing_is_charged_when_the_client_leaves_before_the_first_event() -> (
    None
):
    rig = Rig(events(b": not an event\n\n"))
    await rig.run(Rig.leave)
    assert (rig.charged, rig.outcomes) == (0, {Outcome.CLIENT_DISCONNECT: 1})


async def test_nothing_is_charged_when_the_failure_is_told_by_a_status() -> None:
    rig = Rig(events(ERROR, DONE))
    await rig.run()
    (fault,) = rig.client.told
    assert isinstance(fault, UpstreamReported)
    assert (rig.charged, rig.outcomes) == (0, {Outcome.UPSTREAM_ERROR: 1})


async def test_what_was_shown_is_charged_when_the_provider_fails_later() -> None:
    rig = Rig(events(WORD, WORD, UpstreamTruncated()))
    await rig.run()
    assert rig.client.wire == WORD + WORD
    assert [type(fault) for fault in rig.client.told] == [UpstreamTruncated]
    assert (rig.charged, rig.outcomes) == (PROMPT + 2, {Outcome.UPSTREAM_TRUNCATED: 1})


async def test_failure_stays_the_cause_when_the_client_leaves_during_last_words() -> (
    None
):
    rig = Rig(events(WORD, ERROR))
    await rig.run(Rig.leave)
    assert rig.outcomes == {Outcome.UPSTREAM_ERROR: 1}
    assert rig.charged == PROMPT + 1


async def test_client_is_cut_off_when_it_has_stalled() -> None:
    rig = Rig(events(WORD, WORD))
    rig.client.takes = anyio.Event()
    await rig.run(Rig.stall)
    assert (rig.client.aborted, rig.client.told) == (True, [])
    assert rig.charged == PROMPT + 2
    assert rig.outcomes == {Outcome.CLIENT_STALLED: 1}


async def test_client_is_cut_off_when_it_does_not_take_the_end() -> None:
    rig = Rig(events(WORD, DONE))
    rig.client.ends = anyio.Event()
    await rig.run(Rig.stall)
    assert rig.client.wire == WORD + DONE
    assert (rig.client.aborted, rig.client.ended) == (True, False)
    assert (rig.charged, rig.outcomes) == (PROMPT + 1, {Outcome.CLIENT_STALLED: 1})


async def test_client_gets_whole_events_first_when_it_is_told_while_blocked() -> None:
    rig = Rig(events(WORD, WORD))
    rig.client.takes = anyio.Event()
    await rig.run(Rig.drain)
    assert rig.client.wire == WORD
    assert [type(fault) for fault in rig.client.told] == [Draining]
    assert (rig.charged, rig.outcomes) == (PROMPT + 2, {Outcome.DRAINED: 1})


async def test_stream_is_complete_when_its_end_was_there_before_the_drain() -> None:
    rig = Rig(events(WORD + DONE))
    rig.client.takes = anyio.Event()
    await rig.run(Rig.drain)
    assert rig.client.wire == WORD + DONE
    assert (rig.client.ended, rig.client.told) == (True, [])
    assert (rig.charged, rig.outcomes) == (PROMPT + 1, {Outcome.COMPLETED: 1})


async def test_leaving_is_no_news_after_a_finish_and_silence() -> None:
    rig = Rig(events(WORD, FINISH))

    def time_out_and_leave(rig: Rig) -> None:
        rig.shared.end_all(UpstreamTimeout())
        rig.client.on_end = rig.leave

    await rig.run(time_out_and_leave)
    assert rig.client.wire == WORD + FINISH
    assert rig.outcomes == {Outcome.COMPLETED: 1}


@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_is_charged_when_no_provider_was_reached(stream: bool) -> None:
    rig = Rig(UpstreamUnreachable(), stream=stream)
    await rig.run()
    assert [type(fault) for fault in rig.client.told] == [UpstreamUnreachable]
    assert rig.charged == 0


async def test_prompt_is_charged_when_the_client_leaves_a_whole_answer() -> None:
    rig = Rig(Upstream(200, {}, Arriving(b'{"half":')), stream=False)
    await rig.run(Rig.leave)
    assert (rig.charged, rig.outcomes) == (PROMPT, {Outcome.CLIENT_DISCONNECT: 1})


async def test_nothing_is_charged_when_a_whole_answer_fails() -> None:
    rig = Rig(Upstream(200, {}, Arriving(b"{", UpstreamTimeout())), stream=False)
    await rig.run()
    assert [type(fault) for fault in rig.client.told] == [UpstreamTimeout]
    assert (rig.charged, rig.outcomes) == (0, {Outcome.UPSTREAM_TIMEOUT: 1})
