"""Reading any JSON object without a schema: slower than typed, and never at a loss.

What has the right type is taken, the rest is skipped: an odd value costs no token.
"""

import json
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from streaming.dialects.reading import Reading, read_error, read_usage

type Member = dict[str, Any]
"""A JSON object; its values may be anything."""

type TextsOf = Callable[[int, Member], Iterable[tuple[Hashable, str]]]
"""The runs of text in one choice, by its index and itself."""


def read_object(data: bytes, texts_of: TextsOf) -> Reading | None:
    """Read an event or an answer; None when it is not a JSON object."""
    try:
        # Only between two of its objects do other threads get their turn.
        document = json.loads(data, object_hook=lambda found: found)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    reading = Reading(
        has_usage="usage" in document, usage=read_usage(document.get("usage"))
    )
    choices = document.get("choices")
    if isinstance(choices, list):
        listed = [choice for choice in choices if isinstance(choice, dict)]
        _add_choices(reading, listed, texts_of)
    reported = document.get("error")
    if reported is None and document.get("object") == "error":
        reported = document
    if reported is not None:
        reading.error = read_error(reported)
    return reading


def is_whole(data: bytes) -> bool:
    """Whether a payload is all of an event: ``[DONE]``, or a JSON document."""
    if data == b"[DONE]":
        return True
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def as_text(value: object) -> str | None:
    """Text as it may stand: a string, or a list of parts that hold ``text``."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return None


def _add_choices(
    reading: Reading, choices: Iterable[Member], texts_of: TextsOf
) -> None:
    indexes: list[int] = []
    finishes: list[tuple[int, str]] = []
    texts: list[tuple[Hashable, str]] = []
    for choice in choices:
        given = choice.get("index")
        index = given if type(given) is int else 0
        indexes.append(index)
        finish = choice.get("finish_reason")
        if isinstance(finish, str):
            finishes.append((index, finish))
        if "usage" in choice:
            reading.has_usage = True
            reading.usage = reading.usage or read_usage(choice["usage"])
        texts.extend(texts_of(index, choice))
    reading.choices, reading.finishes, reading.texts = indexes, finishes, texts
