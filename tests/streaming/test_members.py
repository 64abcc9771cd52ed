"""Cutting usage out of JSON text: nothing else changes, whatever the text."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.dialects.members import without_usage

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=10),
    st.sampled_from(['"usage":', 'x"usage', "{", "}", "\\", 'usage":{"a":1}']),
)
NAMES = st.sampled_from(["usage", "id", 'x"usage', "usage2", "choices", "é"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=5)
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")])


def cut(document: Mapping[str, object]) -> dict[str, object]:
    kept = {name: value for name, value in document.items() if name != "usage"}
    choices = kept.get("choices")
    if isinstance(choices, list):
        kept["choices"] = [
            {n: v for n, v in choice.items() if n != "usage"}
            if isinstance(choice, dict)
            else choice
            for choice in choices
        ]
    return kept


def has_usage(document: Mapping[str, object]) -> bool:
    return cut(document) != document


@given(DOCUMENTS.filter(has_usage), SEPARATORS, st.booleans())
def test_without_usage_removes_it_and_nothing_else_when_it_is_there(
    document: dict[str, object], separators: tuple[str, str], ascii_only: bool
) -> None:
    data = json.dumps(document, separators=separators, ensure_ascii=ascii_only)
    assert json.loads(without_usage(data.encode())) == cut(document)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"a":1,"usage":{"x":{"y":2}},"b":3}', b'{"a":1,"b":3}'),
        (b'{"usage":null,"b":3}', b'{"b":3}'),
        (b'{"a":1, "usage": {"x": 1} }', b'{"a":1 }'),
        (b'{"usage":{}}', b"{}"),
        (b'{"a":"\\"usage\\":","usage":{"t":"}"}}', b'{"a":"\\"usage\\":"}'),
        (
            b'{"choices":[{"usage":{"a":1},"index":0}],"usage":{"b":[1,{"c":2}]}}',
            b'{"choices":[{"index":0}]}',
        ),
        (
            b'{"x_groq":{"usage":{"a":1}},"usage":{"b":1}}',
            b'{"x_groq":{"usage":{"a":1}}}',
        ),
    ],
)
def test_without_usage_keeps_all_other_bytes_when_it_cuts(
    data: bytes, expected: bytes
) -> None:
    assert without_usage(data) == expected
