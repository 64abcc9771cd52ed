"""The stages: each one alone, over hand-made batches and recorded streams."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.dialects.chat import ChatDialect
from streaming.errors import UpstreamReported, UpstreamTruncated
from streaming.stage import Batch, Stage
from streaming.stages.metering import Meter, UsageSource
from streaming.stages.usage_view import UsageView, UsageWish
from streaming.stages.verdict import Verdict
from streaming.testing import check_stage, events

TRANSCRIPTS = Path(__file__).parent.parent / "transcripts"
CHAT = ChatDialect()


def words(text: str) -> list[str]:
    return text.split()


def read(*documents: object) -> Batch:
    wire = b"".join(
        b"data: %b\n\n"
        % (
            one
            if isinstance(one, bytes)
            else json.dumps(one, separators=(",", ":")).encode()
        )
        for one in documents
    )
    return events(CHAT, wire)


def chunk(
    text: str = "", *, choice: int = 0, finish: str | None = None, **more: object
) -> object:
    choices = [{"index": choice, "delta": {"content": text}, "finish_reason": finish}]
    return {"choices": choices, **more}


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def recorded(name: str) -> Batch:
    return events(CHAT, (TRANSCRIPTS / name).read_bytes())


STAGES: list[Callable[[], Stage]] = [
    lambda: Meter(words),
    Verdict,
    *(
        lambda w=wish, r=running: UsageView(w, running=r)
        for wish in UsageWish
        for running in (False, True)
    ),
]


@given(
    st.sampled_from([
        "vllm/chat_stream_usage_continuous.body",
        "vllm/chat_stream_n2.body",
        "vllm/engine_killed_stream.body",
        "transformers/chat_stream_usage.body",
        "llamacpp/chat_stream_usage.body",
    ]),
    st.lists(st.integers(0, 5), max_size=20),
)
def test_stages_let_the_same_through_when_batches_are_cut_anywhere(
    name: str, sizes: list[int]
) -> None:
    batch = recorded(name)
    for make in STAGES:
        whole = check_stage(make, batch, per_batch=[])
        assert check_stage(make, batch, per_batch=sizes) == whole


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vllm/chat_stream_usage.body", (19, 12)),
        ("vllm/chat_stream_usage_continuous.body", (19, 12)),
        ("llamacpp/chat_stream_usage.body", None),
        ("transformers/chat_stream_usage.body", None),
    ],
)
def test_meter_takes_the_providers_usage_when_a_real_server_reports_it(
    name: str, expected: tuple[int, int] | None
) -> None:
    meter = Meter(words)
    batch = recorded(name)
    reported = [e.reading.usage for e in batch if e.reading.usage is not None][-1]
    meter.apply(batch, 1.0)
    assert meter.usage == reported
    assert meter.source(ended=True) is UsageSource.PROVIDER
    assert meter.completion_tokens() == reported.completion_tokens
    if expected is not None:
        assert (reported.prompt_tokens, reported.completion_tokens) == expected


def test_meter_counts_every_channel_when_no_usage_is_reported() -> None:
    meter = Meter(words)
    meter.apply(
        read(
            chunk("one two "),
            chunk("three", choice=1),
            {
                "choices": [
                    {
                        "index": 0,
                        "delta": {"reasoning": "a b", "reasoning_content": "a b"},
                    }
                ]
            },
            {"choices": [{"index": 0, "delta": {"refusal": "no"}}]},
            {
                "choices": [
                    {
                        "index": 0,
                        "delta": {
                            "tool_calls": [
                                {
                                    "index": 0,
                                    "function": {"name": "f ", "arguments": "x y"},
                                }
                            ]
                        },
                    }
                ]
            },
            {"choices": [{"index": 0, "delta": {"function_call": {"name": "g"}}}]},
            {
                "choices": [
                    {"index": "odd", "delta": {"content": ["odd", {"text": "part"}]}}
                ]
            },
        ),
        1.0,
    )
    assert meter.completion_tokens() == 2 + 1 + 2 + 1 + 3 + 1 + 1
    assert meter.source(ended=True) is UsageSource.COUNTED


def test_meter_takes_the_last_usage_when_it_is_cumulative() -> None:
    meter = Meter(words)
    meter.apply(read(chunk("a", usage=usage(5, 1)), chunk("b", usage=usage(5, 2))), 1.0)
    assert meter.completion_tokens() == 2
    assert meter.source(ended=False) is UsageSource.CONTINUOUS


def test_meter_adds_up_choices_when_running_usage_is_per_choice() -> None:
    meter = Meter(words)
    running = read(
        chunk("a", choice=0, usage=usage(5, 1)),
        chunk("b c", choice=1, usage=usage(5, 2)),
        chunk(" d", choice=0, usage=usage(5, 2)),
    )
    meter.apply(running, 1.0)
    assert meter.completion_tokens() == 4
    meter.apply(read({"choices": [], "usage": usage(5, 9)}), 2.0)
    assert meter.completion_tokens() == 9


def test_meter_ignores_what_follows_done() -> None:
    meter = Meter(words)
    meter.apply(
        read(chunk("a"), b"[DONE]", chunk(" b"), chunk("", usage=usage(9, 9))), 1.0
    )
    assert meter.completion_tokens() == 1
    assert meter.usage is None


def test_meter_believes_a_zero_when_it_is_reported() -> None:
    meter = Meter(words)
    meter.apply(
        read(chunk("some text", finish="stop"), {"choices": [], "usage": usage(5, 0)}),
        1.0,
    )
    assert meter.completion_tokens() == 0


def test_meter_counts_what_came_after_the_last_usage_when_the_stream_is_cut() -> None:
    meter = Meter(words)
    meter.apply(read(chunk("a", usage=usage(5, 1)), chunk(" b c")), 1.0)
    assert meter.completion_tokens() == 3
    assert meter.source(ended=False) is UsageSource.COUNTED


@pytest.mark.parametrize("insane", [-1, 2**31 + 1, 1.5, "7", True, None])
def test_meter_ignores_usage_when_it_is_insane(insane: object) -> None:
    meter = Meter(words)
    odd = {"prompt_tokens": 1, "completion_tokens": insane}
    meter.apply(read(chunk("a b", usage=odd)), 1.0)
    assert meter.usage is None
    assert meter.completion_tokens() == 2


@given(st.lists(st.text(alphabet="ab é中", max_size=5), max_size=20))
def test_meter_bounds_progress_from_above_when_text_streams(texts: list[str]) -> None:
    meter = Meter(words)
    for text in texts:
        meter.apply(read(chunk(text)), 1.0)
        assert meter.progress_at_most() >= meter.completion_tokens()
    meter.completion_tokens()
    assert meter.progress_at_most() == meter.completion_tokens()


def test_meter_has_bounded_memory_when_choices_are_invented() -> None:
    meter = Meter(words)
    for start in range(0, 5000, 100):
        meter.apply(read(*(chunk("x ", choice=start + i) for i in range(100))), 1.0)
    assert meter.completion_tokens() == 5000
    assert len(meter._runs) == 1024


@pytest.mark.parametrize(
    ("documents", "complete", "fault"),
    [
        ([chunk("a"), chunk(finish="stop"), b"[DONE]"], True, None),
        ([chunk("a"), chunk(finish="stop")], True, None),
        ([chunk("a"), b"[DONE]"], True, None),
        ([chunk("a")], False, UpstreamTruncated),
        ([], False, UpstreamTruncated),
        (
            [chunk("a"), {"error": {"message": "x", "code": 400}}, b"[DONE]"],
            False,
            UpstreamReported,
        ),
        ([chunk("a"), {"error": "x"}], False, UpstreamReported),
        ([chunk("a"), {"object": "error", "message": "x"}], False, UpstreamReported),
        ([chunk("a"), chunk(finish="abort"), b"[DONE]"], False, UpstreamReported),
        ([chunk("a"), chunk(finish="error")], False, UpstreamReported),
        (
            [chunk("a"), chunk("b", choice=1), chunk(finish="stop")],
            False,
            UpstreamTruncated,
        ),
        (
            [chunk("a", finish="stop"), chunk("b", choice=1, finish="length")],
            True,
            None,
        ),
        ([b"null", chunk("a", finish="stop")], True, None),
        ([b"not json", b"[DONE]"], True, None),
        ([b'"[DONE]"'], False, UpstreamTruncated),
    ],
)
def test_verdict_knows_success_when_a_stream_ends(
    documents: list[object], complete: bool, fault: type | None
) -> None:
    verdict = Verdict()
    verdict.apply(read(*documents), 1.0)
    assert verdict.complete is complete
    truncation = verdict.truncation()
    assert truncation is None if fault is None else type(truncation) is fault


def test_verdict_lets_nothing_through_when_the_stream_is_over() -> None:
    batch = read(chunk("a"), b"[DONE]", chunk("b"))
    assert Verdict().apply(batch, 1.0) == batch[:2]
    failed = read(
        chunk("a"), {"error": "x"}, {"choices": [], "usage": usage(1, 1)}, b"[DONE]"
    )
    assert Verdict().apply(failed, 1.0) == failed[:1]


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        (400, 400, "invalid_request"),
        ("404", 404, "model_not_found"),
        (422, 422, "invalid_request"),
        (429, 429, "rate_limit_exceeded"),
        (401, 502, "upstream_error"),
        (500, 502, "upstream_error"),
        (503, 503, "upstream_error"),
        ("server_error", 502, "upstream_error"),
        (None, 502, "upstream_error"),
    ],
)
def test_verdict_takes_the_status_from_the_code_when_an_error_is_reported(
    code: object, status: int, word: str
) -> None:
    verdict = Verdict()
    verdict.apply(read({"error": {"message": "x", "code": code}}), 1.0)
    assert verdict.fault is not None
    assert (verdict.fault.status, verdict.fault.code) == (status, word)


def seen(wish: UsageWish, batch: Batch, *, running: bool = True) -> list[bytes]:
    return check_stage(lambda: UsageView(wish, running=running), batch, per_batch=[])


def test_usage_view_hides_usage_when_the_client_did_not_ask() -> None:
    batch = read(
        chunk("a", usage=usage(5, 1)),
        chunk(finish="stop", usage=None),
        {"choices": [], "usage": usage(5, 1)},
        b"[DONE]",
    )
    plain = read(chunk("a"), chunk(finish="stop"), b"[DONE]")
    assert seen(UsageWish.NONE, batch) == [event.frame.wire for event in plain]


def test_usage_view_gives_vllms_own_bytes_when_usage_was_asked_for_by_us() -> None:
    continuous = seen(
        UsageWish.NONE, recorded("vllm/chat_stream_usage_continuous.body")
    )
    plain = [event.frame.wire for event in recorded("vllm/chat_stream.body")]
    assert [shape(wire) for wire in continuous] == [shape(wire) for wire in plain]


def shape(wire: bytes) -> object:
    payload = wire.removeprefix(b"data: ").strip()
    if payload == b"[DONE]":
        return payload
    return sorted(set(json.loads(payload)) - {"system_fingerprint"})  # came at random


def test_usage_view_shows_the_usage_event_alone_when_the_client_asked() -> None:
    batch = read(
        chunk("a", usage=usage(5, 1)),
        chunk(finish="stop", usage=usage(5, 1)),
        {"choices": [], "usage": usage(5, 1)},
        b"[DONE]",
    )
    expected = read(
        chunk("a"),
        chunk(finish="stop"),
        {"choices": [], "usage": usage(5, 1)},
        b"[DONE]",
    )
    assert seen(UsageWish.FINAL, batch) == [event.frame.wire for event in expected]


def test_usage_view_keeps_the_finish_events_usage_when_there_is_no_usage_event() -> (
    None
):
    last = chunk(finish="stop", usage=usage(5, 1))
    batch = read(chunk("a", usage=usage(5, 1)), last)
    expected = [event.frame.wire for event in read(chunk("a"), last)]
    assert seen(UsageWish.FINAL, batch) == expected
    assert seen(UsageWish.FINAL, [*batch, *read(b"[DONE]")]) == [
        *expected,
        b"data: [DONE]\n\n",
    ]


@pytest.mark.parametrize(
    ("wish", "running"), [(UsageWish.EVERYTHING, True), (UsageWish.FINAL, False)]
)
def test_usage_view_touches_nothing_when_usage_is_the_clients_own(
    wish: UsageWish, running: bool
) -> None:
    batch = recorded("vllm/chat_stream_usage_continuous.body")
    assert seen(wish, batch, running=running) == [event.frame.wire for event in batch]
