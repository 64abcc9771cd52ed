"""Every way a provider can fail, and what the client, the books and the metrics see.

Before the first event a failure is a real status, and nothing is charged. Later it is
one error frame after all whole ones, without ``[DONE]``, and what was generated is
charged. An answer that is not streamed is one event.
"""

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import batched, product
from random import Random
from uuid import uuid4

import anyio
import pytest

from gateway.demo.scenario import Fault
from streaming.outcome import Outcome
from tests.integration.baseline import cpu_seconds
from tests.integration.fleet import Fleet, Plan, running
from tests.integration.raw_client import (
    OUR_PROMPT_TOKENS,
    PROMPT_TOKENS,
    RawClient,
    simulated_text,
)

pytestmark = pytest.mark.anyio

TOKENS = 6
SPOILT_AFTER = 5
GROWN_BYTES = 8_000_000
HEAD_BYTES = 1000
REFUSED_SECONDS = 0.5
"""To inflate a gigabyte takes longer."""
ROUNDS = 20


@dataclass(frozen=True)
class Seen:
    """What becomes of an exchange.

    Attributes:
        status: As the client sees it.
        code: Of the error, be it the body or the last frame.
        outcome: The exchange's.
        relayed: Tokens of content the client got.
        charged: Tokens.
        done: Whether ``[DONE]`` came.
    """

    status: int
    code: str | None
    outcome: Outcome
    relayed: int = 0
    charged: int = 0
    done: bool = False


def refused(status: int, code: str, outcome: Outcome = Outcome.UPSTREAM_ERROR) -> Seen:
    """A failure that is told by a status."""
    return Seen(status, code, outcome)


def cut(code: str, outcome: Outcome = Outcome.UPSTREAM_ERROR) -> Seen:
    """A failure after some events."""
    return Seen(200, code, outcome, SPOILT_AFTER, PROMPT_TOKENS + SPOILT_AFTER)


def complete(*, done: bool, charged: int = PROMPT_TOKENS + TOKENS) -> Seen:
    """No failure at all."""
    return Seen(200, None, Outcome.COMPLETED, TOKENS, charged, done)


TIMEOUT = refused(504, "upstream_timeout", Outcome.UPSTREAM_TIMEOUT)
TRUNCATED = Outcome.UPSTREAM_TRUNCATED
INVALID = refused(502, "upstream_invalid_response")
FAILED = refused(502, "upstream_error")
LOST = refused(502, "upstream_truncated", TRUNCATED)
GOOD_FRAMINGS = (
    Fault.NO_CONTENT_TYPE,
    Fault.SLOW_DRIP,
    Fault.CRLF,
    Fault.CR,
    Fault.BOM,
    Fault.COMMENTS,
    Fault.FIELDS,
    Fault.EMPTY_EVENTS,
    Fault.NULL_FIRST,
    Fault.NO_BLANK_LINE,
    Fault.NO_FINISH,
    Fault.DONE_TWICE,
    Fault.AFTER_DONE,
    Fault.CLOSE_ON_REUSE,
    Fault.USAGE_ON_FINISH,
    Fault.USAGE_AT_CHOICE,
)
"""Nothing is wrong with these answers."""

ON_STATUS = {
    Fault.RESET_BEFORE_HEADERS: FAILED,
    Fault.HANG_BEFORE_HEADERS: TIMEOUT,
    Fault.NOT_HTTP: INVALID,
    Fault.HANG_BEFORE_FIRST: TIMEOUT,
    Fault.RESET_BEFORE_FIRST: LOST,
    Fault.ERROR_FIRST: refused(400, "invalid_request"),
    Fault.STATUS_400_DETAIL: refused(400, "invalid_request"),
    Fault.STATUS_401: FAILED,
    Fault.STATUS_429: refused(429, "rate_limit_exceeded"),
    Fault.STATUS_500_PLAIN: FAILED,
    Fault.STATUS_503: refused(503, "upstream_error"),
    Fault.STATUS_529: refused(503, "upstream_error"),
    Fault.REDIRECT_307: INVALID,
    Fault.HTML_200: INVALID,
    Fault.JSON_ERROR_200: FAILED,
    Fault.HALF_JSON_200: INVALID,
    Fault.GZIP: INVALID,
    Fault.GZIP_BOMB: INVALID,
}
"""The same, streamed or not."""

STREAMED = ON_STATUS | {
    Fault.HANG_MID_STREAM: cut("upstream_timeout", Outcome.UPSTREAM_TIMEOUT),
    Fault.RESET_MID_STREAM: cut("upstream_truncated", TRUNCATED),
    Fault.TRUNCATE: cut("upstream_truncated", TRUNCATED),
    Fault.HALF_EVENT: cut("upstream_truncated", TRUNCATED),
    Fault.BROKEN_CHUNK: cut("upstream_truncated", TRUNCATED),
    Fault.EMPTY: LOST,
    Fault.ERROR_MID_STREAM: cut("upstream_error"),
    Fault.ERROR_STRING: cut("upstream_error"),
    Fault.ABORT: cut("upstream_error"),
    Fault.FINISH_ERROR: cut("upstream_error"),
    Fault.GARBAGE: cut("upstream_truncated", TRUNCATED),
    Fault.BIG_EVENT: cut("upstream_invalid_response"),
    Fault.NO_DONE: complete(done=False),
    Fault.DONE_THEN_OPEN: complete(done=True),
    Fault.FINISH_THEN_SILENCE: complete(done=False),
    Fault.FINISH_THEN_RESET: complete(done=False),
    Fault.NO_USAGE: complete(done=True, charged=OUR_PROMPT_TOKENS + TOKENS),
    **dict.fromkeys(GOOD_FRAMINGS, complete(done=True)),
}

WHOLE = ON_STATUS | {
    Fault.HANG_MID_STREAM: TIMEOUT,
    Fault.RESET_MID_STREAM: LOST,
    Fault.TRUNCATE: INVALID,
    Fault.HALF_EVENT: INVALID,
    Fault.BROKEN_CHUNK: LOST,
    Fault.EMPTY: INVALID,
    Fault.ERROR_MID_STREAM: FAILED,
    Fault.ERROR_STRING: FAILED,
    Fault.ABORT: FAILED,
    Fault.FINISH_ERROR: FAILED,
    Fault.GARBAGE: INVALID,
    Fault.BIG_EVENT: INVALID,
    Fault.NO_DONE: complete(done=False),
    Fault.DONE_THEN_OPEN: TIMEOUT,
    Fault.FINISH_THEN_SILENCE: TIMEOUT,
    Fault.FINISH_THEN_RESET: LOST,
    Fault.NO_USAGE: complete(done=False, charged=OUR_PROMPT_TOKENS + TOKENS),
    **dict.fromkeys(GOOD_FRAMINGS, complete(done=False)),
}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    plan = Plan(
        unlimited=3 * ROUNDS * len(Fault),
        keys_file=True,  # more of them than a variable can hold
        models={
            **{fault: f"sim-r0-t{TOKENS}-f0-m1-d0.05-x{fault}" for fault in Fault},
            "huge": f"sim-r0-f0-m500-x{Fault.BIG_EVENT}",
            "bomb": f"sim-r0-f0-m1000-x{Fault.GZIP_BOMB}",
            "slow-bomb": f"sim-r0-f60000-m1000-x{Fault.GZIP_BOMB}",
        },
        server={"max_response_bytes": 65_536},
        streaming={
            "first_byte_seconds": 0.6,
            "idle_seconds": 0.6,
            "total_seconds": 1.2,
            "max_event_bytes": 65_536,
        },
    )
    with running(plan) as fleet:
        yield fleet


def test_tables_name_every_fault() -> None:
    assert set(STREAMED) == set(WHOLE) == set(Fault)


@pytest.mark.parametrize("fault", STREAMED)
async def test_stream_ends_as_the_table_says(fleet: Fleet, fault: Fault) -> None:
    assert await seen_of_stream(fleet, fault) == STREAMED[fault]


@pytest.mark.parametrize("fault", WHOLE)
async def test_whole_answer_ends_as_the_table_says(fleet: Fleet, fault: Fault) -> None:
    assert await seen_of_answer(fleet, fault) == WHOLE[fault]


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_faults_do_not_mix_when_two_meet(fleet: Fleet) -> None:
    random = Random()
    rows = [*product([seen_of_stream], STREAMED), *product([seen_of_answer], WHOLE)]
    found = {}

    async def look(see: See, fault: Fault) -> None:
        found[see, fault] = await see(fleet, fault)

    for _ in range(ROUNDS):
        random.shuffle(rows)
        for pair in batched(rows, 2, strict=False):
            if len({fault for _, fault in pair}) < len(pair):
                continue  # the two would be one in the metrics
            async with anyio.create_task_group() as tasks:
                for see, fault in pair:
                    tasks.start_soon(look, see, fault)
            for see, fault in pair:
                table = STREAMED if see is seen_of_stream else WHOLE
                assert found[see, fault] == table[fault]


async def seen_of_stream(fleet: Fleet, fault: Fault) -> Seen:
    """What becomes of a stream with this fault."""
    key = fleet.new_key()
    before = await fleet.outcomes(fault)
    async with RawClient(fleet, key, uuid4().hex) as client:
        await client.ask(fault)
        await client.read_to_end()
    assert client.complete
    events = client.body.split(b"\n\n")
    errors = [event for event in events if b'"error":' in event]
    assert errors == [event for event in events[-2:] if b'"error":' in event]
    check_retry_after(client)
    return Seen(
        status=client.status,
        code=error_code(errors[0]) if errors else None,
        outcome=await outcome_since(fleet, fault, before),
        relayed=client.tokens,
        charged=await fleet.used(key),
        done=b"data: [DONE]" in events,
    )


async def seen_of_answer(fleet: Fleet, fault: Fault) -> Seen:
    """What becomes of an answer with this fault that is not streamed."""
    key = fleet.new_key()
    before = await fleet.outcomes(fault)
    async with RawClient(fleet, key, uuid4().hex) as client:
        await client.ask(fault, stream=False)
        await client.read_to_end()
    assert client.complete
    check_retry_after(client)
    said = json.loads(client.body).get("choices")
    if said:
        assert said[0]["message"]["content"] == simulated_text(TOKENS)
    return Seen(
        status=client.status,
        code=None if said else error_code(client.body),
        outcome=await outcome_since(fleet, fault, before),
        relayed=TOKENS if said else 0,
        charged=await fleet.used(key),
    )


type See = Callable[[Fleet, Fault], Awaitable[Seen]]


async def test_last_words_are_relayed_though_the_usage_in_them_may_not_be_the_last(
    fleet: Fleet,
) -> None:
    async with RawClient(fleet, fleet.new_key(), uuid4().hex) as client:
        await client.ask(Fault.ABORT, stream_options={"include_usage": True})
        await client.read_to_end()
    assert client.tokens == SPOILT_AFTER


async def test_connection_closed_on_reuse_is_replaced_unnoticed(fleet: Fleet) -> None:
    key = fleet.new_key()
    request_ids = [uuid4().hex, uuid4().hex]
    for number, request_id in enumerate(request_ids, 1):
        async with RawClient(fleet, key, request_id) as client:
            await client.ask(Fault.CLOSE_ON_REUSE)
            await client.read_to_end()
        assert client.tokens == TOKENS
        # Settled: the connection has been put back.
        assert await fleet.used(key) == number * (PROMPT_TOKENS + TOKENS)
    asked = [one.request_id for one in list(fleet.provider.log)]
    assert asked.count(request_ids[1]) == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_memory_stays_flat_when_an_event_has_500_megabytes(
    fleet: Fleet, stream: bool
) -> None:
    before = fleet.rss_bytes
    async with RawClient(fleet, fleet.new_key(), uuid4().hex) as client:
        await client.ask("huge", stream=stream)
        await client.read_to_end()
        attempt = await fleet.attempt(client.request_id)
    assert b"upstream_invalid_response" in client.body
    assert attempt.bytes_written < 500_000_000 // 10
    assert fleet.rss_bytes - before < GROWN_BYTES


@pytest.mark.parametrize("model", ["bomb", "slow-bomb"])
@pytest.mark.parametrize("stream", [True, False])
async def test_bomb_of_a_gigabyte_is_refused_by_its_head(
    fleet: Fleet, model: str, stream: bool
) -> None:
    gateway = fleet.gateways[0]
    rss, cpu, began_at = gateway.rss_bytes, cpu_seconds(gateway), anyio.current_time()
    async with RawClient(fleet, fleet.new_key(), uuid4().hex) as client:
        await client.ask(model, stream=stream)
        await client.read_to_end()
        attempt = await fleet.attempt(client.request_id)
    seconds = anyio.current_time() - began_at
    cpu, grown = cpu_seconds(gateway) - cpu, gateway.rss_bytes - rss
    print(f"{1000 * seconds:.0f} ms, {cpu:.2f} s of CPU, {grown / 1024:.0f} KiB more")
    assert (client.status, error_code(client.body)) == (502, INVALID.code)
    assert max(seconds, cpu) < REFUSED_SECONDS
    assert grown < GROWN_BYTES
    assert model == "bomb" or attempt.bytes_written < HEAD_BYTES


@pytest.mark.parametrize(
    ("fault", "seconds"), [(Fault.STATUS_429, b"1"), (Fault.STATUS_529, b"7")]
)
async def test_provider_says_when_to_come_back(
    fleet: Fleet, fault: Fault, seconds: bytes
) -> None:
    async with RawClient(fleet, fleet.new_key(), uuid4().hex) as client:
        await client.ask(fault)
        await client.read_to_end()
    assert client.headers[b"retry-after"] == seconds


async def outcome_since(fleet: Fleet, model: str, before: Counter[str]) -> Outcome:
    """How the one exchange since then ended."""
    (outcome,) = await fleet.outcomes_since(model, before)
    return Outcome(outcome)


def error_code(envelope: bytes | bytearray) -> str:
    """The code of an error, once it has the members that every error has."""
    error = json.loads(envelope.removeprefix(b"data: "))["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    code = error["code"]
    assert isinstance(code, str)
    return code


def check_retry_after(client: RawClient) -> None:
    """A refusal that may pass says when to come back."""
    expected = {b"retry-after", b"retry-after-ms"}
    there = expected & client.headers.keys()
    assert there == (expected if client.status in {429, 503} else set())
