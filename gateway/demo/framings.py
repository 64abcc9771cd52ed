"""Streams that are good, and framed in a way that few servers would choose.

Each is a function from the parts of an answer to the parts that leave instead. An
answer that is not streamed has no frames, and leaves as it is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Final

from gateway.demo import wire
from gateway.demo.answers import Answer, Kind, Part
from gateway.demo.scenario import Fault
from gateway.demo.wire import Ending, Step, Write

type Framing = Callable[[Iterable[Part]], Iterator[Part]]

_DONE: Final = b"data: [DONE]\n\n"
_LATE: Final = b'data: {"choices":[{"index":0,"delta":{"content":"too late"}}]}\n\n'


def _with_line_ends(parts: Iterable[Part], *, end: bytes) -> Iterator[Part]:
    for part in parts:
        yield part._replace(payload=part.payload.replace(b"\n", end))


def _before_each(parts: Iterable[Part], *, prefix: bytes) -> Iterator[Part]:
    for part in parts:
        yield part._replace(payload=prefix + part.payload)


def _at_first(parts: Iterable[Part], *, prefix: bytes) -> Iterator[Part]:
    parts = iter(parts)
    return chain(_before_each([next(parts)], prefix=prefix), parts)


def _at_last(parts: Iterable[Part], *, suffix: bytes) -> Iterator[Part]:
    yield from parts
    yield Part(Kind.DONE, 0.0, suffix)


def _unterminated(parts: Iterable[Part]) -> Iterator[Part]:
    for part in parts:
        is_last = part.kind is Kind.DONE
        yield part._replace(payload=part.payload.rstrip()) if is_last else part


def _unfinished(parts: Iterable[Part]) -> Iterator[Part]:
    return (part for part in parts if part.kind is not Kind.FINISH)


_FRAMINGS: Final[Mapping[Fault, Framing]] = {
    Fault.CRLF: partial(_with_line_ends, end=b"\r\n"),
    Fault.CR: partial(_with_line_ends, end=b"\r"),
    Fault.BOM: partial(_at_first, prefix=b"\xef\xbb\xbf"),
    Fault.COMMENTS: partial(_before_each, prefix=b": keep-alive\n\n"),
    Fault.FIELDS: partial(_before_each, prefix=b": hm\nid: 7\nretry: 10\nodd: x\n"),
    Fault.EMPTY_EVENTS: partial(_before_each, prefix=b"event: ping\n\ndata:\n\n"),
    Fault.NULL_FIRST: partial(_at_first, prefix=b"data: null\n\n"),
    Fault.NO_BLANK_LINE: _unterminated,
    Fault.NO_FINISH: _unfinished,
    Fault.DONE_TWICE: partial(_at_last, suffix=_DONE),
    Fault.AFTER_DONE: partial(_at_last, suffix=_LATE + b"\xff\x00 garbage"),
}


def _reframed(answer: Answer, *, framing: Framing) -> Iterator[Step]:
    if not answer.generation.stream:
        yield from answer.steps()
        return
    head = wire.chunked_head(answer.content_type, answer.generation.request_id)
    yield Write(answer.head_due, head)
    yield from answer.framed(framing(answer.parts()))
    yield Write(0.0, wire.LAST_CHUNK)
    yield Ending.KEEP_ALIVE


ODD_FRAMINGS: Final[Mapping[Fault, Callable[[Answer], Iterator[Step]]]] = {
    fault: partial(_reframed, framing=framing) for fault, framing in _FRAMINGS.items()
}
