"""A run of events read as one must come to the same as each of them by itself."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streaming.dialects.chat import ChatDialect
from streaming.errors import UpstreamFault
from streaming.sse import Framer
from streaming.stage import Batch, Event, Stage, read
from streaming.stages.metering import Meter
from streaming.stages.usage_view import UsageView, UsageWish
from streaming.stages.verdict import Verdict

CHAT = ChatDialect()
STREAMS = sorted((Path(__file__).parent.parent / "transcripts").rglob("*stream*.body"))

COUNTS = st.integers(0, 500)
USAGES = st.one_of(
    st.none(),
    st.builds(lambda n: {"prompt_tokens": 3, "completion_tokens": n}, COUNTS),
    st.builds(
        lambda n: {
            "prompt_tokens": 3,
            "completion_tokens": n,
            "completion_tokens_details": {"reasoning_tokens": None},
        },
        COUNTS,
    ),
    st.just({"prompt_tokens": 3, "completion_tokens": 4, "odd": {"a": {"b": "}"}}}),
)
TEXTS = st.sampled_from(["river", 'a "b"', "使用", "", ',"usage":{"a":1}', "\\n\n"])
DELTAS = st.one_of(
    st.builds(lambda text: {"content": text}, TEXTS),
    st.builds(lambda text: {"content": text}, TEXTS),
    st.builds(lambda text: {"reasoning": text, "reasoning_content": text}, TEXTS),
    st.builds(lambda text: {"x": {"usage": {"a": 1}}, "content": text}, TEXTS),
    st.just({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}),
    st.just({"content": 7}),
)


@st.composite
def chunks(draw: st.DrawFn) -> str:
    choice: dict[str, object] = {"delta": draw(DELTAS)}
    choice["index"] = draw(st.sampled_from([0, 0, 0, 0, 1]))
    choice["finish_reason"] = draw(st.sampled_from([None] * 9 + ["stop", "abort"]))
    chunk: dict[str, object] = {"choices": [choice]}
    if draw(st.booleans()):
        chunk["usage"] = draw(USAGES)
    return json.dumps(chunk, separators=(",", ":"), ensure_ascii=False)


ODD = st.sampled_from([
    *("[DONE]", "{}", "null", '{"choices":[]}', '{"error":"gone"}', "half {", "[]"),
    *('{"a":1},{"b":2}', '{"choices":[{"delta":{}}]}},{', '{"usage":null}'),
])
WIRES = st.lists(st.one_of(chunks(), chunks(), chunks(), ODD), min_size=1, max_size=9)


def outcome(batches: list[Batch], wish: UsageWish) -> tuple[object, ...]:
    meter, verdict = Meter(str.split), Verdict()
    stages: list[Stage] = [meter, verdict, UsageView(wish, running=True)]
    out: Batch = []
    for events in batches:
        batch = events
        for stage in stages:
            batch = stage.apply(batch, 1.0)
        out += batch
    out += stages[-1].flush()
    wire = b"".join(event.frame.wire for event in out)
    fault = verdict.fault
    blamed = (type(fault), fault.message) if isinstance(fault, UpstreamFault) else None
    return wire, meter.completion_tokens(), meter.usage, verdict.complete, blamed


def check(wire: bytes, wish: UsageWish) -> None:
    one_by_one = [
        [Event(frame, CHAT.read(frame.data))] for frame in Framer().feed(wire)
    ]
    runs = [read(CHAT, frame) for frame in Framer().feed_runs(wire)]
    assert outcome(runs, wish) == outcome(one_by_one, wish)


@given(payloads=WIRES, wish=st.sampled_from(UsageWish))
@example(
    payloads=['{"choices":[{"delta":{"content":"a b"}}]}'] * 3, wish=UsageWish.NONE
)
def test_run_comes_to_the_same_as_its_events(
    payloads: list[str], wish: UsageWish
) -> None:
    check("".join(f"data: {one}\n\n" for one in payloads).encode(), wish)


@pytest.mark.parametrize("wish", UsageWish)
@pytest.mark.parametrize(
    "stream", STREAMS, ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_recorded_stream_comes_to_the_same_when_it_is_one_run(
    stream: Path, wish: UsageWish
) -> None:
    check(stream.read_bytes(), wish)


def test_plain_events_are_one_frame_until_something_comes_between() -> None:
    plain = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    frames = Framer().feed_runs(plain * 3 + b"event: x\n" + plain)
    assert [frame.events for frame in frames] == [1, 1, 1, 1]
    (run,) = Framer().feed_runs(plain * 3)
    assert (run.events, run.wire) == (3, plain * 3)
    assert [one.wire for one in run.split()] == [plain] * 3
    assert len(read(CHAT, run)) == 1
