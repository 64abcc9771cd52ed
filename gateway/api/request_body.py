"""A request's body: read within bounds, parsed strictly, kept in its own bytes."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import NoReturn

import msgspec
from starlette.types import Receive

from gateway.errors import InvalidRequest, RequestTooLarge, UnsupportedEncoding
from streaming.errors import ClientDisconnected

type Body = tuple[dict[str, object], Mapping[str, msgspec.Raw]]
"""A JSON object, twice: parsed, and as its members' own bytes."""

MAX_DEPTH = 32
BYTES_PER_CONTAINER = 10
"""Fewest there are in a body with more than ``FREE_CONTAINERS`` lists and objects: a
schema of nothing but optional members has 10.4. An empty list of 2 bytes takes 64 bytes
of memory."""
FREE_CONTAINERS = 4096

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_TOO_DEEP = f"The body is nested deeper than {MAX_DEPTH}."
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_body(
    receive: Receive, headers: Iterable[tuple[bytes, bytes]], most: int
) -> bytes:
    """The whole body, of at most ``most`` bytes, measured while it comes in.

    Raises:
        UnsupportedEncoding: It is compressed.
        RequestTooLarge: It is, or says that it is, larger.
        ClientDisconnected: The client left while sending.
    """
    _check_headers(headers, most)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise RequestTooLarge
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def parse_body(body: bytes) -> Body:
    """The body as a JSON object.

    Raises:
        InvalidRequest: It is not valid UTF-8 or JSON, not an object, holds NaN,
            duplicate names or lone surrogates, is nested deeper than 32, or is little
            but lists and objects.
    """
    containers = _containers(body)
    try:
        parsed = _decode(body.decode())
    except UnicodeDecodeError:
        _refuse("The body is not valid UTF-8.")
    except json.JSONDecodeError:
        _refuse("The body is not valid JSON.")
    except RecursionError:
        _refuse(_TOO_DEEP)
    except ValueError:  # an integer of more digits than Python reads
        _refuse("The body holds a number that is too large.")
    if not isinstance(parsed, dict):
        _refuse("The body is not a JSON object.")
    if containers > MAX_DEPTH:
        _check_depth(parsed)
    if _SURROGATE.search(body):
        _check_surrogates(parsed)
    return parsed, _decode_members(body)


def _check_headers(headers: Iterable[tuple[bytes, bytes]], most: int) -> None:
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() != b"identity":
            raise UnsupportedEncoding
        if name == b"content-length" and value.isdigit() and int(value) > most:
            raise RequestTooLarge


def _containers(body: bytes) -> int:
    """How many lists and objects there are at most; refused when they are too many."""
    most = FREE_CONTAINERS + len(body) // BYTES_PER_CONTAINER
    containers = body.count(b"{") + body.count(b"[")
    if containers > most:  # unless they are brackets in text
        bare = _STRING.sub(b"", body)
        containers = bare.count(b"{") + bare.count(b"[")
        if containers > most:
            _refuse("The body holds too many lists and objects for its size.")
    return containers


def _check_depth(parsed: object) -> None:
    level = [parsed]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in _inside(outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        _refuse(_TOO_DEEP)


def _inside(container: object) -> Iterable[object]:
    if isinstance(container, dict):
        return container.values()
    return container if isinstance(container, list) else ()


def _check_surrogates(parsed: object) -> None:
    try:
        json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        _refuse("The body holds half a surrogate pair.")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) != len(pairs):
        _refuse("The body names a member twice.")
    return names


def _no_constant(_constant: str) -> NoReturn:
    _refuse("The body holds a number that is not finite.")


_decode = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant
).decode


def _refuse(message: str) -> NoReturn:
    raise InvalidRequest(message)
