"""A client cannot tell which adapter spoke to its provider.

Every transcript and every fault, through one gateway that has a provider of each
adapter: same status, header, bytes, outcome and charge, and the ones that the tables of
``test_transcripts`` and ``test_faults`` say.
"""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from copy import replace
from dataclasses import dataclass, field
from itertools import product
from uuid import uuid4

import anyio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.demo.scenario import Fault, SimulatorSettings
from gateway.demo.simulated import SimulatedProvider
from streaming.outcome import Outcome
from tests.contract.provider_desk import ADAPTERS, CANARY, Noting
from tests.gateway.providers.raw_server import RawServer
from tests.integration.fleet import Fleet, Plan, eventually
from tests.integration.raw_client import (
    OUR_PROMPT_TOKENS,
    PROMPT_TOKENS,
    RawClient,
    chat,
)
from tests.integration.test_faults import (
    STREAMED,
    TIMEOUT,
    TOKENS,
    WHOLE,
    Seen,
    check_retry_after,
    error_code,
)
from tests.integration.test_transcripts import (
    FAILED,
    TRANSCRIPTS,
    Transcript,
    ask,
    check_events,
    failure,
    replay,
)

pytestmark = pytest.mark.anyio

AT_A_TIME = 32
WAYS = (("whole", True), ("odd", False))
"""The pieces, and whether all usage is asked for."""
TABLES = {"stream": STREAMED, "json": WHOLE}
PROGRESS = {"vllm"}
"""Adapters that ask for running usage."""
WITHOUT_FINAL_USAGE = {
    Fault.HANG_MID_STREAM,
    Fault.RESET_MID_STREAM,
    Fault.TRUNCATE,
    Fault.HALF_EVENT,
    Fault.BROKEN_CHUNK,
    Fault.ERROR_MID_STREAM,
    Fault.ERROR_STRING,
    Fault.GARBAGE,
    Fault.BIG_EVENT,
    Fault.FINISH_THEN_SILENCE,
    Fault.FINISH_THEN_RESET,
}
"""Of streams: without running usage, their prompt is charged as the gateway counts."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The fleet stands on the loop of all tests."""
    return "asyncio"


@pytest.fixture(scope="module")
async def noting() -> Noting:
    return Noting()


@pytest.fixture(scope="module")
async def fleet(noting: Noting) -> AsyncIterator[Fleet]:
    settings = SimulatorSettings(rate=0, tokens=TOKENS, first_token_ms=0)
    async with (
        RawServer(replay) as recorded,
        RawServer(noting) as noted,
        SimulatedProvider(settings) as simulated,
    ):
        urls = {
            "replay": recorded.url("/v1"),
            "note": noted.url("/v1"),
            "sim": simulated.base_url,
        }
        async with Fleet(plan_with(urls)) as fleet:
            yield fleet


def plan_with(urls: dict[str, str]) -> Plan:
    models: dict[str, tuple[str, str]] = {
        **{one.name: ("replay", one.name) for one in TRANSCRIPTS},
        **{fault: ("sim", f"sim-r0-f0-m1-d0.05-x{fault}") for fault in Fault},
        "noted": ("note", "noted"),
    }
    return Plan(
        models={},
        unlimited=len(ADAPTERS) * (2 * len(Fault) + len(TRANSCRIPTS) + 1),
        keys_file=True,  # more of them than a variable can hold
        streaming={
            "first_byte_seconds": 2,
            "idle_seconds": 2,
            "total_seconds": 3,
            "max_event_bytes": 65_536,
        },
        server={"max_response_bytes": 65_536},
        extra={
            "providers": [
                {
                    "name": f"{adapter}-{name}",
                    "adapter": adapter,
                    "base_url": url,
                    "api_key_env": "PROVIDER_KEY",
                }
                for adapter, (name, url) in product(ADAPTERS, urls.items())
            ],
            "models": [
                {
                    "name": f"{adapter}:{name}",
                    "candidates": [{"provider": f"{adapter}-{at}", "model": model}],
                }
                for adapter, (name, (at, model)) in product(ADAPTERS, models.items())
            ],
            "routing": {"breaker": {"failures": 1000}},
        },
        environment={"PROVIDER_KEY": CANARY},
    )


@dataclass(frozen=True)
class Case:
    """One fault, in one mode, at a provider of one adapter."""

    adapter: str
    mode: str
    fault: Fault

    @property
    def model(self) -> str:
        """Who has it."""
        return f"{self.adapter}:{self.fault}"

    @property
    def expected(self) -> Seen:
        """What the tables say, for who may get no usage before the last event."""
        seen = TABLES[self.mode][self.fault]
        told = self.adapter in PROGRESS or self.mode != "stream"
        if told or self.fault not in WITHOUT_FINAL_USAGE:
            return seen
        return replace(seen, charged=seen.charged + OUR_PROMPT_TOKENS - PROMPT_TOKENS)


@dataclass(frozen=True)
class Relayed:
    """What became of a transcript, asked for in each of the ways.

    Attributes:
        answers: As they came.
        told: Their status, header and bytes, without what is never the same.
        charged: Tokens, of all together.
        outcomes: How the exchanges ended.
    """

    answers: list[httpx.Response] = field(compare=False)
    told: list[tuple[int, dict[str, str], bytes]]
    charged: int
    outcomes: Counter[Outcome]


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda one: one.name)
async def test_transcript_is_relayed_alike_by_every_adapter(
    fleet: Fleet, transcript: Transcript
) -> None:
    found = [await relayed(fleet, adapter, transcript) for adapter in ADAPTERS]
    assert found == [found[0]] * len(ADAPTERS)
    for (_, all_usage), answer in zip(WAYS, found[0].answers, strict=True):
        assert failure(answer) == FAILED.get(transcript.name, (200, ""))
        if transcript.is_stream and answer.status_code == 200:
            check_events(transcript, answer, all_usage=all_usage)
        elif answer.status_code == 200:
            assert answer.content == transcript.body
    if transcript.name not in FAILED and transcript.usage is not None:
        assert found[0].charged == len(WAYS) * transcript.usage
    assert found[0].outcomes == {outcome_of(transcript): len(WAYS)}


def outcome_of(transcript: Transcript) -> Outcome:
    _, code = FAILED.get(transcript.name, (200, ""))
    if not code:
        return Outcome.COMPLETED
    truncated = code == "upstream_truncated"
    return Outcome.UPSTREAM_TRUNCATED if truncated else Outcome.UPSTREAM_ERROR


async def relayed(fleet: Fleet, adapter: str, transcript: Transcript) -> Relayed:
    key, prefix = fleet.new_key(), f"{adapter}:"
    answers = [
        await ask(fleet, key, transcript, pieces, all_usage, prefix)
        for pieces, all_usage in WAYS
    ]
    charged = await fleet.used(key)
    at = prefix + transcript.name, "stream" if transcript.is_stream else "json"
    ended = await eventually(
        lambda: outcomes(fleet), lambda seen: seen[at].total() == len(WAYS)
    )
    assert {one.headers["x-gateway-provider"] for one in answers if one.is_success} <= {
        f"{adapter}-replay"
    }
    told = [(one.status_code, telling(one), one.content) for one in answers]
    return Relayed(answers, told, charged, ended[at])


def telling(answer: httpx.Response) -> dict[str, str]:
    """The header without what is particular to one answer."""
    particular = {"date", "x-request-id", "x-gateway-provider"}
    return {
        name: value for name, value in answer.headers.items() if name not in particular
    }


async def test_fault_ends_alike_with_every_adapter(fleet: Fleet) -> None:
    cases = [
        Case(adapter, mode, fault)
        for adapter, mode, fault in product(ADAPTERS, TABLES, Fault)
    ]
    slow_first = sorted(cases, key=lambda case: case.expected.code != TIMEOUT.code)
    keys = {case: fleet.new_key() for case in slow_first}
    clients: dict[Case, RawClient] = {}
    limiter = anyio.CapacityLimiter(AT_A_TIME)

    async def look(case: Case) -> None:
        async with limiter, RawClient(fleet, keys[case], uuid4().hex) as client:
            await client.ask(case.model, stream=case.mode == "stream")
            await client.read_to_end()
            clients[case] = client

    async with anyio.create_task_group() as tasks:
        for case in slow_first:
            tasks.start_soon(look, case)
    charged = {case: await fleet.used(keys[case]) for case in cases}
    ended = await outcomes(fleet)
    found = {
        case: seen_by(clients[case], outcome, charged[case])
        for case in cases
        for outcome in ended[case.model, case.mode].elements()
    }
    assert found == {case: case.expected for case in cases}


def seen_by(client: RawClient, outcome: Outcome, charged: int) -> Seen:
    assert client.complete
    check_retry_after(client)
    streamed = client.headers[b"content-type"].startswith(b"text/event-stream")
    events = client.body.split(b"\n\n") if streamed else [client.body]
    errors = [event for event in events if b'"error":' in event]
    assert errors == [event for event in events[-2:] if b'"error":' in event]
    answered = client.status == 200
    return Seen(
        status=client.status,
        code=error_code(errors[0]) if errors else None,
        outcome=outcome,
        relayed=0 if not answered else client.tokens if streamed else TOKENS,
        charged=charged,
        done=b"data: [DONE]" in events,
    )


async def outcomes(fleet: Fleet) -> dict[tuple[str, str], Counter[Outcome]]:
    """By model and mode, how their exchanges ended: this metric alone is parsed."""
    async with fleet.client() as client:
        text = (await client.get("/metrics")).raise_for_status().text
    lines = [line for line in text.splitlines() if "gateway_exchanges_total{" in line]
    found: dict[tuple[str, str], Counter[Outcome]] = defaultdict(Counter)
    for family in text_string_to_metric_families("\n".join(lines)):
        for sample in family.samples:
            labels = sample.labels
            at = labels["model"], labels["mode"]
            found[at][Outcome(labels["outcome"])] += round(sample.value)
    return found


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_nothing_of_the_callers_header_reaches_the_provider(
    fleet: Fleet, noting: Noting, adapter: str
) -> None:
    noting.requests.clear()
    mine = "caller-canary"
    headers = {
        "accept": f"text/{mine}",
        "cookie": f"session={mine}",
        "forwarded": f"for={mine}",
        "openai-beta": mine,
        "openai-organization": mine,
        "openai-project": mine,
        "referer": f"http://{mine}.invalid/",
        "user-agent": mine,
        "x-forwarded-for": mine,
        "x-request-id": "id-of-the-caller",
        "x-stainless-retry-count": mine,
    }
    async with fleet.client(key := fleet.new_key()) as client:
        body = chat(f"{adapter}:noted")
        answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200
    (request,) = noting.requests
    assert mine.encode() not in request
    assert key.secret.encode() not in request
    assert noting.lines[b"x-request-id"] == b"id-of-the-caller"
    assert noting.lines[b"authorization"] == b"Bearer " + CANARY.encode()
