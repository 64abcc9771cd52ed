"""Every way a provider can fail, and what the client, the books and the metrics see.

Before the first event a failure is a real status, and nothing is charged. Later it is
one error frame after all whole ones, without ``[DONE]``, and what was generated is
charged. An answer that is not streamed is one event.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest

from gateway.demo.scenario import Fault
from streaming.outcome import Outcome
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

ON_STATUS = {
    Fault.RESET_BEFORE_HEADERS: FAILED,
    Fault.HANG_BEFORE_HEADERS: TIMEOUT,
    Fault.HANG_BEFORE_FIRST: TIMEOUT,
    Fault.ERROR_FIRST: refused(400, "invalid_request"),
    Fault.STATUS_401: FAILED,
    Fault.STATUS_429: refused(429, "rate_limit_exceeded"),
    Fault.STATUS_500_PLAIN: FAILED,
    Fault.STATUS_503: refused(503, "upstream_error"),
    Fault.REDIRECT_307: INVALID,
    Fault.HTML_200: INVALID,
    Fault.JSON_ERROR_200: FAILED,
    Fault.GZIP: INVALID,
}
"""The same, streamed or not."""

STREAMED = ON_STATUS | {
    Fault.HANG_MID_STREAM: cut("upstream_timeout", Outcome.UPSTREAM_TIMEOUT),
    Fault.RESET_MID_STREAM: cut("upstream_truncated", TRUNCATED),
    Fault.TRUNCATE: cut("upstream_truncated", TRUNCATED),
    Fault.ERROR_MID_STREAM: cut("upstream_error"),
    Fault.ABORT: cut("upstream_error"),
    Fault.GARBAGE: cut("upstream_truncated", TRUNCATED),
    Fault.BIG_EVENT: cut("upstream_invalid_response"),
    Fault.NO_DONE: complete(done=False),
    Fault.DONE_THEN_OPEN: complete(done=True),
    Fault.CLOSE_ON_REUSE: complete(done=True),
    Fault.USAGE_ON_FINISH: complete(done=True),
    Fault.NO_USAGE: complete(done=True, charged=OUR_PROMPT_TOKENS + TOKENS),
    Fault.SLOW_DRIP: complete(done=True),
}

WHOLE = ON_STATUS | {
    Fault.HANG_MID_STREAM: TIMEOUT,
    Fault.RESET_MID_STREAM: refused(502, "upstream_truncated", TRUNCATED),
    Fault.TRUNCATE: INVALID,
    Fault.ERROR_MID_STREAM: FAILED,
    Fault.ABORT: FAILED,
    Fault.GARBAGE: INVALID,
    Fault.BIG_EVENT: INVALID,
    Fault.NO_DONE: complete(done=False),
    Fault.DONE_THEN_OPEN: TIMEOUT,
    Fault.CLOSE_ON_REUSE: complete(done=False),
    Fault.USAGE_ON_FINISH: complete(done=False),
    Fault.NO_USAGE: complete(done=False, charged=OUR_PROMPT_TOKENS + TOKENS),
    Fault.SLOW_DRIP: complete(done=False),
}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    plan = Plan(
        models={fault: f"sim-r0-t{TOKENS}-f0-m1-d0.05-x{fault}" for fault in Fault},
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
    key = fleet.new_key()
    before = await fleet.outcomes(fault)
    async with RawClient(fleet, key, uuid4().hex) as client:
        await client.ask(fault)
        await client.read_to_end()
    assert client.complete
    events = client.body.split(b"\n\n")
    errors = [event for event in events if b'"error":' in event]
    seen = Seen(
        status=client.status,
        code=error_code(errors[0]) if errors else None,
        outcome=await outcome_since(fleet, fault, before),
        relayed=client.tokens,
        charged=await fleet.used(key),
        done=b"data: [DONE]" in events,
    )
    assert seen == STREAMED[fault]
    assert errors == [event for event in events[-2:] if b'"error":' in event]
    check_retry_after(client)


@pytest.mark.parametrize("fault", WHOLE)
async def test_whole_answer_ends_as_the_table_says(fleet: Fleet, fault: Fault) -> None:
    key = fleet.new_key()
    before = await fleet.outcomes(fault)
    async with RawClient(fleet, key, uuid4().hex) as client:
        await client.ask(fault, stream=False)
        await client.read_to_end()
    assert client.complete
    said = json.loads(client.body).get("choices")
    seen = Seen(
        status=client.status,
        code=None if said else error_code(client.body),
        outcome=await outcome_since(fleet, fault, before),
        relayed=TOKENS if said else 0,
        charged=await fleet.used(key),
    )
    assert seen == WHOLE[fault]
    if said:
        assert said[0]["message"]["content"] == simulated_text(TOKENS)
    check_retry_after(client)


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
