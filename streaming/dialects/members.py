"""Cutting a member's text out of JSON without touching anything else.

A frame's bytes are the provider's. Where one member must not reach the client, its
text and one comma are removed; nothing is parsed and written again.
"""

import re

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_TOKEN = re.compile(_STRING + rb"|[{}\[\],]", re.DOTALL)
_SPACE = b" \t\r\n"

# A usage object as providers write it: plain strings, one level of details.
_INNER = rb'(?:[^{}"\\]++|"[^"\\]*+")'
_FLAT = rb"\{(?:" + _INNER + rb"|\{" + _INNER + rb"*+\})*+\}"
_PLAIN_START = b',"usage":'
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
    if data.count(b'"usage"') == 1:
        start = data.rfind(_PLAIN_START)
        if start >= 0 and (plain := _PLAIN.match(data, start)):  # this is every token
            return data[:start] + data[plain.end() :]
        if match := _USAGE.search(data):
            return _cut(data, match.start(), match.end())
    for start, end in reversed(_usage_spans(data)):
        data = _cut(data, start, end)
    return data


def without_usages(run: bytes, events: int) -> bytes | None:
    """The bytes of several events without the ``usage`` member that each has.

    None when one of them must be looked at by itself.
    """
    if run.count(b'"usage"') != events:
        return None
    cut, found = _PLAIN.subn(b"", run)
    return cut if found == events else None


def _cut(data: bytes, start: int, end: int) -> bytes:
    before = data[:start].rstrip(_SPACE)
    if before.endswith(b","):
        return before[:-1] + data[end:]
    after = data[end:].lstrip(_SPACE)
    if after.startswith(b","):
        return data[:start] + after[1:].lstrip(_SPACE)
    return data[:start] + data[end:]


def _usage_spans(data: bytes) -> list[tuple[int, int]]:
    """Where each member stands, key to end of value, found by walking all tokens."""
    spans: list[tuple[int, int]] = []
    path: list[bytes] = []  # an opened container and, for objects, its current key
    key_expected = False
    start = -1
    for token in _TOKEN.finditer(data):
        text = token.group()
        if text[0] in b"{[":
            path.append(text if text == b"[" else b"")
            key_expected = text == b"{"
        elif text[0] in b"}],":
            if start >= 0 and _is_ours(path):
                spans.append((start, len(data[: token.start()].rstrip(_SPACE))))
                start = -1
            if text != b",":
                path.pop()
            key_expected = bool(path) and path[-1] != b"["
        elif key_expected:
            path[-1] = text
            key_expected = False
            if _is_ours(path):
                start = token.start()
    return spans


def _is_ours(path: list[bytes]) -> bool:
    return path in ([b'"usage"'], [b'"choices"', b"[", b'"usage"'])
