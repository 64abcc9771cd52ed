"""How each fault is done, as the steps of an answer.

To add one: a member of ``Fault``, a function from an answer to its steps, and a row in
``BEHAVIOURS``; what is odd about the frames alone is in ``framings``. "Mid-stream" is
after ``fault_after_tokens`` tokens of a stream, and after half of a JSON body.
"""

import gzip as gzip_format
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from itertools import takewhile
from typing import Final, Literal

from gateway.demo import wire
from gateway.demo.answers import Answer, Kind
from gateway.demo.framings import ODD_FRAMINGS
from gateway.demo.generation import Usage, error_envelope
from gateway.demo.scenario import Fault
from gateway.demo.wire import Ending, Step, Write

type Behaviour = Callable[[Answer], Iterator[Step]]

_ENGINE_DIED: Final = "EngineCore encountered an issue. See stack trace (above)."
_BAD_BIAS: Final = (
    "token_id(s) [99999999] in logit_bias contain out-of-vocab token ids."
)
_JUNK: Final = (
    b"not json",
    b'{"choices":[{',
    b"\xff\xfe\x00",
    b"[1,2",
    b"<b>hello</b>",
)
_BLOCK_BYTES: Final = 65_536
_BOMB_BLOCK: Final = bytes(10**6)
_GZIP_HEAD: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_AFTER_FINISH: Final = frozenset({Kind.USAGE, Kind.DONE})
_SITE_IS_OVERLOADED: Final = 529


def _reset_before_headers(_: Answer) -> Iterator[Step]:
    yield Ending.RESET


def _hang_before_headers(_: Answer) -> Iterator[Step]:
    yield Ending.HANG


def _not_http(_: Answer) -> Iterator[Step]:
    yield Write(0.0, b"SSH-2.0-OpenSSH_9.9\r\n")
    yield Ending.HANG


def _hang_before_first(answer: Answer) -> Iterator[Step]:
    yield _head(answer)
    yield Ending.HANG


def _reset_before_first(answer: Answer) -> Iterator[Step]:
    yield _head(answer)
    yield Ending.RESET


def _empty(answer: Answer) -> Iterator[Step]:
    yield _head(answer)
    yield from _clean_end()


def _hang_mid_stream(answer: Answer) -> Iterator[Step]:
    yield from _opening(answer)
    yield Ending.HANG


def _reset_mid_stream(answer: Answer) -> Iterator[Step]:
    yield from _opening(answer)
    event = wire.chunk(answer.next_part().payload)
    yield Write(0.0, event[: len(event) // 2])
    yield Ending.RESET


def _truncate(answer: Answer) -> Iterator[Step]:
    yield from _opening(answer)
    yield from _clean_end()


def _half_event(answer: Answer) -> Iterator[Step]:
    yield from _opening(answer)
    event = answer.next_part().payload
    yield Write(0.0, wire.chunk(event[: len(event) // 2]))
    yield from _clean_end()


def _broken_chunk(answer: Answer) -> Iterator[Step]:
    yield from _opening(answer)
    yield Write(0.0, b"no size\r\n")
    yield Ending.HANG


def _error_first(answer: Answer) -> Iterator[Step]:
    status = HTTPStatus.BAD_REQUEST
    if not answer.generation.stream:
        yield from _vllm_error(answer, status=status, message=_BAD_BIAS)
        return
    yield _head(answer)
    yield _error_event(_BAD_BIAS, "logit_bias", status)
    yield from _done()


def _error_mid_stream(answer: Answer) -> Iterator[Step]:
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    if not answer.generation.stream:
        yield from _vllm_error(answer, status=status, message=_ENGINE_DIED)
        return
    yield from _opening(answer)
    yield _error_event(_ENGINE_DIED, None, status)
    yield from _done()


def _error_string(answer: Answer) -> Iterator[Step]:
    error = json.dumps({"error": _ENGINE_DIED}).encode()
    if not answer.generation.stream:
        yield from _response(answer, body=error)
        return
    yield from _opening(answer)
    yield Write(0.0, wire.chunk(b"data: %b\n\n" % error))
    yield from _done()


def _finish_badly(
    answer: Answer, *, reason: Literal["abort", "error"]
) -> Iterator[Step]:
    tokens = min(answer.tokens, answer.settings.fault_after_tokens)
    return replace(answer, tokens=tokens, finish=reason).steps()


def _garbage(answer: Answer) -> Iterator[Step]:
    yield from _opening(answer)
    for junk in _JUNK:
        yield Write(0.0, wire.chunk(b"data: %b\n\n" % junk))
    yield from _clean_end()


def _big_event(answer: Answer) -> Iterator[Step]:
    yield from _opening(answer)
    yield Write(0.0, wire.chunk(b'data: {"id":"'))
    missing = answer.settings.event_megabytes * 10**6
    while missing > 0:
        size = min(missing, _BLOCK_BYTES)
        yield Write(0.0, wire.chunk(b"a" * size))
        missing -= size
    yield Ending.HANG


def _no_done(answer: Answer) -> Iterator[Step]:
    yield _head(answer)
    parts = (part for part in answer.parts() if part.kind is not Kind.DONE)
    yield from answer.framed(parts)
    yield from _clean_end()


def _done_then_open(answer: Answer) -> Iterator[Step]:
    yield _head(answer)
    yield from answer.framed(answer.parts())
    yield Ending.HANG


def _finish_then(answer: Answer, *, ending: Ending) -> Iterator[Step]:
    yield _head(answer)
    parts = takewhile(lambda part: part.kind not in _AFTER_FINISH, answer.parts())
    yield from answer.framed(parts)
    yield ending


def _without_type(answer: Answer) -> Iterator[Step]:
    yield Write(answer.head_due, wire.chunked_head("", answer.generation.request_id))
    yield from answer.framed(answer.parts())
    yield from _clean_end()


def _with_usage(answer: Answer, *, usage: Usage) -> Iterator[Step]:
    return replace(answer, generation=replace(answer.generation, usage=usage)).steps()


def _slow_drip(answer: Answer) -> Iterator[Step]:
    due = 0.0
    for step in answer.steps():
        if not isinstance(step, Write):
            yield step
            return
        for last, byte in _bytewise(step.data):
            due = max(step.due, due + answer.settings.drip_ms / 1000)
            yield Write(due, byte, step.tokens if last else 0)


def _close_on_reuse(answer: Answer) -> Iterator[Step]:
    if answer.generation.reused:
        yield Ending.CLOSE
    else:
        yield from answer.steps()


def _gzip(answer: Answer) -> Iterator[Step]:
    parts = list(answer.parts())
    body = gzip_format.compress(b"".join([part.payload for part in parts]))
    response = wire.whole(
        HTTPStatus.OK,
        answer.content_type,
        answer.generation.request_id,
        body,
        "content-encoding: gzip",
    )
    yield Write(answer.head_due, response, sum(part.tokens for part in parts))
    yield Ending.KEEP_ALIVE


def _gzip_bomb(answer: Answer) -> Iterator[Step]:
    identity, settings = answer.generation.request_id, answer.settings
    fields = "transfer-encoding: chunked\r\ncontent-encoding: gzip"
    yield Write(0.0, wire.head(HTTPStatus.OK, answer.content_type, identity, fields))
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    block = deflate.compress(_BOMB_BLOCK) + deflate.flush(zlib.Z_FULL_FLUSH)
    yield Write(answer.due(0), wire.chunk(_GZIP_HEAD))
    checksum = 0
    for _ in range(settings.event_megabytes):
        checksum = zlib.crc32(_BOMB_BLOCK, checksum)
        yield Write(0.0, wire.chunk(block))
    length = settings.event_megabytes * len(_BOMB_BLOCK)
    end = deflate.flush() + struct.pack("<LL", checksum, length & 0xFFFF_FFFF)
    yield Write(0.0, wire.chunk(end))
    yield from _clean_end()


def _response(
    answer: Answer,
    *,
    status: int = HTTPStatus.OK,
    content_type: str = wire.JSON,
    body: bytes = b"",
    fields: tuple[str, ...] = (),
) -> Iterator[Step]:
    response = wire.whole(
        status, content_type, answer.generation.request_id, body, *fields
    )
    yield Write(0.0, response)
    yield Ending.KEEP_ALIVE


def _vllm_error(
    answer: Answer,
    *,
    status: HTTPStatus,
    message: str,
    fields: tuple[str, ...] = (),
    sent_as: HTTPStatus | None = None,
) -> Iterator[Step]:
    body = json.dumps(error_envelope(message, None, status), separators=(",", ":"))
    return _response(
        answer, status=sent_as or status, body=body.encode(), fields=fields
    )


def _head(answer: Answer) -> Write:
    data = wire.chunked_head(answer.content_type, answer.generation.request_id)
    return Write(answer.head_due, data)


def _opening(answer: Answer) -> Iterator[Write]:
    yield _head(answer)
    yield from answer.framed(answer.opening())


def _error_event(message: str, param: str | None, status: HTTPStatus) -> Write:
    # With blanks after colon and comma: vLLM writes this one event with json.dumps.
    envelope = json.dumps(error_envelope(message, param, status))
    return Write(0.0, wire.chunk(f"data: {envelope}\n\n".encode()))


def _done() -> Iterator[Step]:
    yield Write(0.0, wire.chunk(b"data: [DONE]\n\n"))
    yield from _clean_end()


def _clean_end() -> Iterator[Step]:
    yield Write(0.0, wire.LAST_CHUNK)
    yield Ending.KEEP_ALIVE


def _bytewise(data: bytes) -> Iterator[tuple[bool, bytes]]:
    last = len(data) - 1
    return ((index == last, data[index : index + 1]) for index in range(len(data)))


BEHAVIOURS: Final[Mapping[Fault, Behaviour]] = {
    Fault.RESET_BEFORE_HEADERS: _reset_before_headers,
    Fault.HANG_BEFORE_HEADERS: _hang_before_headers,
    Fault.NOT_HTTP: _not_http,
    Fault.HANG_BEFORE_FIRST: _hang_before_first,
    Fault.RESET_BEFORE_FIRST: _reset_before_first,
    Fault.EMPTY: _empty,
    Fault.HANG_MID_STREAM: _hang_mid_stream,
    Fault.RESET_MID_STREAM: _reset_mid_stream,
    Fault.TRUNCATE: _truncate,
    Fault.HALF_EVENT: _half_event,
    Fault.BROKEN_CHUNK: _broken_chunk,
    Fault.CLOSE_ON_REUSE: _close_on_reuse,
    Fault.ERROR_FIRST: _error_first,
    Fault.ERROR_MID_STREAM: _error_mid_stream,
    Fault.ERROR_STRING: _error_string,
    Fault.ABORT: partial(_finish_badly, reason="abort"),
    Fault.FINISH_ERROR: partial(_finish_badly, reason="error"),
    Fault.STATUS_400_DETAIL: partial(
        _response, status=HTTPStatus.BAD_REQUEST, body=b'{"detail":"n is too large"}'
    ),
    Fault.STATUS_401: partial(
        _response, status=HTTPStatus.UNAUTHORIZED, body=b'{"error":"Unauthorized"}'
    ),
    Fault.STATUS_429: partial(
        _vllm_error,
        status=HTTPStatus.TOO_MANY_REQUESTS,
        message="Too many requests.",
        fields=("retry-after: 1",),
    ),
    Fault.STATUS_500_PLAIN: partial(
        _response,
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        content_type="text/plain; charset=utf-8",
        body=b"Internal Server Error",
    ),
    Fault.STATUS_503: partial(
        _vllm_error,
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        message="The model is sleeping.",
    ),
    Fault.STATUS_529: partial(
        _response, status=_SITE_IS_OVERLOADED, fields=("retry-after: 7",)
    ),
    Fault.REDIRECT_307: partial(
        _response,
        status=HTTPStatus.TEMPORARY_REDIRECT,
        fields=("location: /v1/elsewhere",),
    ),
    Fault.HTML_200: partial(
        _response, content_type="text/html", body=b"<html><h1>It works!</h1></html>"
    ),
    Fault.JSON_ERROR_200: partial(
        _vllm_error,
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        message=_ENGINE_DIED,
        sent_as=HTTPStatus.OK,
    ),
    Fault.HALF_JSON_200: partial(_response, body=b'{"choices":[{"index":0,"mess'),
    Fault.NO_CONTENT_TYPE: _without_type,
    Fault.GZIP: _gzip,
    Fault.GZIP_BOMB: _gzip_bomb,
    Fault.GARBAGE: _garbage,
    Fault.BIG_EVENT: _big_event,
    Fault.NO_DONE: _no_done,
    Fault.DONE_THEN_OPEN: _done_then_open,
    Fault.FINISH_THEN_SILENCE: partial(_finish_then, ending=Ending.HANG),
    Fault.FINISH_THEN_RESET: partial(_finish_then, ending=Ending.RESET),
    Fault.USAGE_ON_FINISH: partial(_with_usage, usage=Usage.ON_FINISH),
    Fault.USAGE_AT_CHOICE: partial(_with_usage, usage=Usage.AT_CHOICE),
    Fault.NO_USAGE: partial(_with_usage, usage=Usage.NOWHERE),
    Fault.SLOW_DRIP: _slow_drip,
    **ODD_FRAMINGS,
}


def steps_of(answer: Answer) -> Iterator[Step]:
    """How the answer leaves, with the fault its settings name."""
    fault = answer.settings.fault
    return answer.steps() if fault is None else BEHAVIOURS[fault](answer)
