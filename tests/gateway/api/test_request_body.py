"""A request's body: what is taken for JSON, and what is not."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.types import Message, Receive

from gateway.api.request_body import MAX_DEPTH, parse_body, read_body
from gateway.errors import InvalidRequest, RequestTooLarge, UnsupportedEncoding
from streaming.errors import ClientDisconnected, Fault

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
).filter(lambda value: value not in {float("inf"), float("-inf")})
VALUES = st.recursive(
    SCALARS,
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.text(), VALUES)


@given(
    value=OBJECTS,
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    around=st.sampled_from(["", " ", "\r\n\t"]),
)
def test_body_is_parsed_as_it_was_written_however_it_was_written(
    value: dict[str, object], indent: int | None, ascii_only: bool, around: str
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    parsed, members = parse_body(f"{around}{text}{around}".encode())
    assert parsed == value
    assert {name: json.loads(bytes(raw)) for name, raw in members.items()} == value


def test_members_keep_the_bytes_of_the_client() -> None:
    body = b'{"a": [1.0,  2e0] , "b":"\\u0041", "c": 0.10, "d":{"x" :null}}'
    _, members = parse_body(body)
    assert {name: bytes(raw) for name, raw in members.items()} == {
        "a": b"[1.0,  2e0]",
        "b": b'"\\u0041"',
        "c": b"0.10",
        "d": b'{"x" :null}',
    }


def nested(depth: int) -> bytes:
    """An object that deep, itself the first level."""
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize(
    "body",
    [
        nested(MAX_DEPTH),
        b'{"a": "' + b"[{" * 100 + b'"}',
        b'{"a": "\\"' + b"[" * 100 + b'"}',
        b'{"a": "\\\\", "b": "' + b"[" * 100 + b'"}',
        b"{" + b",".join(b'"%d": []' % number for number in range(100)) + b"}",
        b'{"a": "\\ud83d\\ude00"}',
        b'{"": 0}',
        b'{"a": ' + b"9" * 4000 + b"}",
        b'{"a": 1e400}',
        b'{"a": "' + b"[{" * 100_000 + b'"}',
        b'{"a": [' + b"[1]," * 4000 + b"0]}",
    ],
    ids=[
        "deepest",
        "brackets in a string",
        "after an escaped quote",
        "after an escaped backslash",
        "side by side",
        "a whole pair",
        "no name",
        "many digits",
        "beyond a double",
        "many brackets in a string",
        "many lists",
    ],
)
def test_body_is_taken_when_it_only_looks_odd(body: bytes) -> None:
    parsed, members = parse_body(body)
    assert parsed.keys() == members.keys()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xef\xbb\xbf{}",
        b"{",
        b"{}{}",
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": "\n"}',
        b'{"a": 01}',
        b"null",
        b"[]",
        b'"text"',
        b'{"a": NaN}',
        b'{"a": [-Infinity]}',
        b'{"a": 1, "a": 1}',
        b'{"a": 1, "\\u0061": 1}',
        b'{"x": [{"a": 1, "a": 2}]}',
        b'{"a": "\\ud800"}',
        b'{"\\udc00": 1}',
        b'{"a": "\\ude00\\ud83d"}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\xc0\x80"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        nested(MAX_DEPTH + 1),
        nested(100_000),
        b"[" * 100_000,
        b'{"a": [' + b"[1]," * 10_000 + b"0]}",
        b'{"a": [' + b'"[",{},' * 20_000 + b"0]}",
    ],
)
def test_body_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_body(body)


@given(st.binary(max_size=40) | st.text('{}[]":,\\ u0123d8aeE+-.tfn', max_size=40))
@example(b'{"a":\xf0\x9f\x98}')
@example('{"\\ud8')
def test_any_bytes_are_an_object_or_refused(body: bytes | str) -> None:
    body = body if isinstance(body, bytes) else body.encode()
    try:
        parsed, members = parse_body(body)
    except InvalidRequest:
        return
    assert parsed == json.loads(body)
    assert parsed.keys() == members.keys()


# While it comes in.


def receiving(*parts: bytes | None, ended: bool = True) -> Receive:
    """A body in parts; None is the client's leaving."""
    messages: list[Message] = [
        {"type": "http.disconnect"}
        if part is None
        else {"type": "http.request", "body": part, "more_body": True}
        for part in parts
    ]
    if ended:
        messages.append({"type": "http.request"})
    coming = iter(messages)

    async def receive() -> Message:
        return next(coming)

    return receive


@pytest.mark.anyio
@pytest.mark.parametrize("parts", [[], [b"abcd"], [b"", b"a", b"bcd"]])
async def test_body_is_read_to_its_end(parts: list[bytes]) -> None:
    headers = [(b"content-encoding", b"Identity"), (b"content-length", b"4")]
    assert await read_body(receiving(*parts), headers, 4) == b"".join(parts)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("receive", "headers", "fault"),
    [
        (receiving(b"ab", b"cde", ended=False), [], RequestTooLarge),
        (receiving(ended=False), [(b"content-length", b"5")], RequestTooLarge),
        (
            receiving(ended=False),
            [(b"content-encoding", b"gzip")],
            UnsupportedEncoding,
        ),
        (receiving(b"ab", None), [], ClientDisconnected),
    ],
    ids=["too large", "says it is too large", "compressed", "left"],
)
async def test_body_is_not_read_any_further(
    receive: Receive, headers: Iterable[tuple[bytes, bytes]], fault: type[Fault]
) -> None:
    with pytest.raises(fault):
        await read_body(receive, headers, 4)
