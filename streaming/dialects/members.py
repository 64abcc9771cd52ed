"""Cutting a member's text out of JSON without touching anything else.

A frame's bytes are the provider's. Where one member must not reach the client, its
text and one comma are removed; nothing is parsed and written again.
"""

import re
from collections.abc import Iterable, Iterator

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_SPACE = b" \t\r\n"
_COMMA = re.compile(rb"\s*+,\s*+")
_JOINT = re.compile(rb"[\s,]*+")
_OBJECT, _OBJECT_END, _LIST, _LIST_END = b"{}[]"

# A frame may have a million tokens: what is not ours is passed over by one match, also
# a container that is not deep. In JSON the brackets of a pair are of one kind.
_PASSED = rb'[^{}\[\]"]++'
_CONTAINER = rb"(?!)"
for _ in range(4):
    _CONTAINER = (
        rb"[{\[](?:" + _PASSED + rb"|" + _STRING + rb"|" + _CONTAINER + rb")*+[}\]]"
    )
_INSIDE = re.compile(
    rb"(?:" + _PASSED + rb"|" + _STRING + rb"|" + _CONTAINER + rb")*+", re.DOTALL
)
_SHALLOW = re.compile(_STRING + rb'|[^{}\[\]",\s]++|' + _CONTAINER, re.DOTALL)


class _Ours:
    """Keys to find in an object.

    Attributes:
        key: One of them, its colon, and the space behind it.
        up_to: All that may stand before one, a deep value, or the object's end.
    """

    def __init__(self, names: bytes) -> None:
        key = rb'"(' + names + rb')"\s*+:\s*+'
        self.key = re.compile(key)
        other = rb"(?!" + key + rb")" + _STRING
        self.up_to = re.compile(
            rb"(?:" + _PASSED + rb"|" + other + rb"|" + _CONTAINER + rb")*+", re.DOTALL
        )


_USAGE_ONLY = _Ours(rb"usage")
_USAGE_OR_CHOICES = _Ours(rb"usage|choices")

# A usage object as providers write it: plain strings, one level of details.
_INNER = rb'(?:[^{}"\\]++|"[^"\\]*+")'
_FLAT = rb"\{(?:" + _INNER + rb"|\{" + _INNER + rb"*+\})*+\}"
_PLAIN_START = b',"usage":'
_LAST_START = b',"usage":{'
_LAST_END = b"}}"
_COUNTS = rb'\{(?:"[a-z_]++":(?:[0-9]++|null),?+)*+\}'
_PLAIN = re.compile(
    _PLAIN_START
    + rb'(?:null|\{(?:"[a-z_]++":(?:[0-9]++|null|'
    + _COUNTS
    + rb"),?+)*+\})"
)
_USAGE = re.compile(rb'(?<!\\)"usage"\s*+:\s*+(?:null|' + _FLAT + rb")")


def without_usage(data: bytes) -> bytes:
    """The JSON object without its ``usage`` members.

    Args:
        data: A JSON object that is known to have one, beside or inside its choices.

    Returns:
        The same bytes without the text of each such member, at the top level or
        directly in an element of ``choices``, and without the comma that joined it.
    """
    first = data.find(b'"usage"') - 1
    if data.startswith(_LAST_START, first) and _is_flat_and_last(data, first):
        return data[:first] + b"}"  # this is every token
    if data.count(b'"usage"') == 1:
        start = data.rfind(_PLAIN_START)
        if start >= 0 and (plain := _PLAIN.match(data, start)):
            return data[:start] + data[plain.end() :]
        if match := _USAGE.search(data):
            return _without(data, [match.span()])
    return _without(data, _usage_spans(data))


def _is_flat_and_last(data: bytes, start: int) -> bool:
    """Whether an object that begins here is without others, and ends the outer one.

    In JSON it is, if there is no other brace: braces in strings would be more.
    """
    return (
        data.endswith(_LAST_END)
        and data.count(b"{", start) == 1
        and data.count(b"}", start) == len(_LAST_END)
    )


def without_usages(run: bytes, events: int) -> bytes | None:
    """The bytes of several events without the ``usage`` member that each has.

    None when one of them must be looked at by itself.
    """
    if run.count(b'"usage"') != events:
        return None
    cut, found = _PLAIN.subn(b"", run)
    return cut if found == events else None


def _without(data: bytes, spans: Iterable[tuple[int, int]]) -> bytes:
    """The bytes outside of the spans, in order, each less the comma that joined it."""
    kept: list[bytes] = []
    at = 0
    for start, end in spans:
        before = data[at:start].rstrip(_SPACE)
        if before.endswith(b","):
            kept.append(before[:-1])
            at = end
        else:
            kept.append(data[at:start])
            comma = _COMMA.match(data, end)
            at = comma.end() if comma else end
    return b"".join([*kept, data[at:]])


def _usage_spans(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each member stands, key to end of value, in order."""
    for key in _keys(data, data.index(b"{") + 1, _USAGE_OR_CHOICES):
        end = _value_end(data, key.end())
        if key[1] == b"usage":
            yield key.start(), end
        elif data[key.end()] == _LIST:
            yield from _spans_in_choices(data, key.end() + 1)


def _spans_in_choices(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    while data[at := _end(_JOINT, data, at)] != _LIST_END:
        if data[at] == _OBJECT:
            for key in _keys(data, at + 1, _USAGE_ONLY):
                yield key.start(), _value_end(data, key.end())
        at = _value_end(data, at)


def _keys(data: bytes, at: int, ours: _Ours) -> Iterator[re.Match[bytes]]:
    """Each of our keys with its colon, in the object whose inside begins here."""
    while data[at := _end(ours.up_to, data, at)] != _OBJECT_END:
        if key := ours.key.match(data, at):
            yield key
            at = key.end()
        at = _value_end(data, at)


def _value_end(data: bytes, at: int) -> int:
    """Where the value that begins here ends; a deep one is opened level by level."""
    if value := _SHALLOW.match(data, at):
        return value.end()
    depth = 0
    while True:
        depth += 1 if data[at] in b"{[" else -1
        at += 1
        if depth == 0:
            return at
        at = _end(_INSIDE, data, at)


def _end(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    """Where the text ends that the pattern, which may be nothing, matches here."""
    match = pattern.match(data, at)
    return match.end() if match else at
