"""The framer: any split of any bytes gives the same frames."""

from itertools import pairwise
from pathlib import Path

import httpx_sse._decoders as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import UpstreamInvalid
from streaming.sse import Frame, Framer

TRANSCRIPTS = sorted(
    path
    for path in Path(__file__).parent.parent.glob("transcripts/*/*.body")
    if path.read_bytes().startswith((b"data", b":"))
)


def frames_of(*reads: bytes, max_event_bytes: int = 1 << 20) -> list[Frame]:
    framer = Framer(max_event_bytes)
    frames = [frame for read in reads for frame in framer.feed(read)]
    tail = framer.close()
    return frames if tail is None else [*frames, tail]


def payloads(*reads: bytes) -> list[bytes]:
    return [frame.data for frame in frames_of(*reads)]


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


LINES = st.sampled_from([
    b"data: {}",
    b"data:x",
    b"data",
    b"data: ",
    b"data:  two blanks",
    b"data: \xe2\x82\xac\xc2\x85\xe2\x80\xa8",
    b": comment",
    b":",
    b"id: 7",
    b"event: tick",
    b"retry: 10",
    b"unknown: field",
    b"dataX: no",
    b"",
    b"",
])
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
STREAMS = st.lists(st.tuples(LINES, ENDS), max_size=30).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


@given(STREAMS, st.lists(st.integers(min_value=0), max_size=20))
def test_framer_gives_the_same_frames_when_split_anywhere(
    data: bytes, cuts: list[int]
) -> None:
    assert frames_of(*split_at(data, cuts)) == frames_of(data)


@given(st.sampled_from(TRANSCRIPTS), st.lists(st.integers(0, 1 << 20), max_size=50))
def test_framer_gives_the_same_frames_when_a_transcript_is_split(
    transcript: Path, cuts: list[int]
) -> None:
    data = transcript.read_bytes()
    assert frames_of(*split_at(data, cuts)) == frames_of(data)


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
def test_framer_gives_the_same_frames_when_fed_byte_by_byte(transcript: Path) -> None:
    data = transcript.read_bytes()
    assert frames_of(*(data[i : i + 1] for i in range(len(data)))) == frames_of(data)


@given(STREAMS)
def test_framer_agrees_with_httpx_sse_when_every_event_is_ended(data: bytes) -> None:
    data += b"\n\n"
    lines = oracle.SSELineDecoder()
    events = oracle.SSEDecoder()
    text = data.decode()
    decoded = [events.decode(line) for line in [*lines.decode(text), *lines.flush()]]
    # httpx-sse gives out events without data, which are nothing here.
    expected = [event.data for event in decoded if event is not None and event.data]
    assert [payload.decode() for payload in payloads(data)] == expected


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
def test_framer_relays_every_byte_when_a_transcript_has_no_comments(
    transcript: Path,
) -> None:
    data = transcript.read_bytes()
    if b"\n:" in b"\n" + data:
        data = b"".join(
            block + b"\n\n"
            for block in data.split(b"\n\n")
            if block and not block.startswith(b":")
        )
    wire = b"".join(frame.wire for frame in frames_of(data))
    assert wire == data.rstrip(b"\n") + b"\n\n"


def test_framer_gives_an_event_at_once_when_it_ends_in_cr_cr() -> None:
    framer = Framer()
    assert [f.data for f in framer.feed(b"data: x\r\r")] == [b"x"]
    assert [f.data for f in framer.feed(b"\ndata: y\r\n\r\n")] == [b"y"]


def test_framer_joins_lines_when_data_comes_in_several() -> None:
    (frame,) = frames_of(b"event: e\r\ndata: a\r\nid: 1\r\ndata:b\r\n\r\n")
    assert frame.data == b"a\nb"
    assert frame.wire == b"event: e\ndata: a\ndata:b\n\n"


@pytest.mark.parametrize("cut", range(4))
def test_framer_drops_one_bom_when_it_is_at_the_start(cut: int) -> None:
    data = b"\xef\xbb\xbf\xef\xbb\xbfdata: no\n\n\xef\xbb\xbfdata: no\n\ndata: y\n\n"
    assert payloads(data[:cut], data[cut:]) == [b"y"]
    assert payloads(b"\xef\xbb\xbfdata: x\n\n"[:cut], data[3:][:0]) == []


def test_framer_ends_lines_nowhere_else_when_unicode_has_line_ends() -> None:
    data = "data: a\u2028b\u0085c\u000bd\u000ce\n\n".encode()
    assert payloads(data) == [data[6:-2]]


@pytest.mark.parametrize(
    "tail", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r"]
)
def test_framer_returns_the_last_event_when_its_blank_line_is_missing(
    tail: bytes,
) -> None:
    assert payloads(b"data: x\n\n" + tail) == [b"x", b"[DONE]"]


@pytest.mark.parametrize("size", [1, 7, 100, 4096])
def test_framer_stops_when_an_event_is_too_large(size: int) -> None:
    data = b"data: ok\n\ndata: " + b"x" * 200 + b"\n\ndata: never\n\n"
    framer = Framer(max_event_bytes=100)
    frames = []
    for start in range(0, len(data), size):
        frames += framer.feed(data[start : start + size])
    assert [frame.data for frame in frames] == [b"ok"]
    assert isinstance(framer.fault, UpstreamInvalid)
    assert framer.close() is None


@pytest.mark.parametrize("size", [1, 3, 4096])
def test_framer_takes_an_event_when_it_is_exactly_as_large_as_allowed(
    size: int,
) -> None:
    data = b"data: " + b"x" * 94 + b"\r\n\r\n"
    framer = Framer(max_event_bytes=100)
    frames = []
    for start in range(0, len(data), size):
        frames += framer.feed(data[start : start + size])
    assert [len(frame.data) for frame in frames] == [94]
    assert framer.fault is None


def test_framer_forgets_comments_when_they_never_end_an_event() -> None:
    framer = Framer(max_event_bytes=1000)
    for _ in range(10_000):
        assert framer.feed(b": still here\n") == []
    assert framer.feed(b":" + b"x" * 5000) == []
    assert [f.data for f in framer.feed(b"\ndata: x\n\n")] == [b"x"]


def test_frame_keeps_its_event_line_when_its_data_is_replaced() -> None:
    (one,) = frames_of(b"event: e\ndata: {}\n\n")
    assert one.with_data(b"[]").wire == b"event: e\ndata: []\n\n"
    (two,) = frames_of(b"event: e\ndata: {\ndata: }\n\n")
    assert two.with_data(b"[]").wire == b"event: e\ndata: []\n\n"
