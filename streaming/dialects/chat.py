"""The chat completions dialect: chunks of a stream, and whole answers.

An event costs one typed decode of the few members metering needs (0.6 µs). Whatever
does not fit those types is read again without types, member by member, so that an odd
value costs time and never a token.
"""

import json
from collections.abc import Hashable, Iterator
from typing import Annotated, Any, override

import msgspec

from streaming.dialects.reading import (
    DONE,
    NOTHING,
    Dialect,
    Reading,
    TokenUsage,
    read_error,
    read_usage,
)

_ABSENT = msgspec.Raw(b"")


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    index: int = 0
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta
    index: int = 0
    finish_reason: str | None = None
    usage: msgspec.Raw = _ABSENT


type _Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: _Count
    completion_tokens: _Count


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice]
    usage: _Usage | msgspec.UnsetType | None = msgspec.UNSET
    error: msgspec.Raw = _ABSENT


_decode = msgspec.json.Decoder(_Chunk).decode


class ChatDialect(Dialect):
    """``chat.completion.chunk`` events and ``chat.completion`` answers."""

    @override
    def read(self, data: bytes) -> Reading:
        """Read one event's payload."""
        if data == b"[DONE]":
            return DONE
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _read_untyped(data, "delta") or NOTHING
        if chunk.error is not _ABSENT:
            return _read_untyped(data, "delta") or NOTHING
        return _read_chunk(chunk)

    @override
    def read_answer(self, body: bytes) -> Reading | None:
        """Read a whole answer; None when it is not a JSON object."""
        return _read_untyped(body, "message")

    @override
    def is_whole(self, data: bytes) -> bool:
        """Whether the payload is ``[DONE]`` or a whole JSON document."""
        if data == b"[DONE]":
            return True
        try:
            json.loads(data)
        except (ValueError, RecursionError):
            return False
        return True


def _read_chunk(chunk: _Chunk) -> Reading:
    reading = Reading()
    choices = chunk.choices
    if len(choices) == 1:
        choice = choices[0]
        reading.choices = (choice.index,)
        reading.texts = _texts(choice.index, choice.delta)
        if choice.finish_reason is not None:
            reading.finishes = ((choice.index, choice.finish_reason),)
    else:
        reading.choices = [choice.index for choice in choices]
        reading.texts = [t for c in choices for t in _texts(c.index, c.delta)]
        reading.finishes = [
            (c.index, c.finish_reason) for c in choices if c.finish_reason is not None
        ]
    if chunk.usage is not msgspec.UNSET:
        reading.has_usage = True
        usage = chunk.usage
        if usage is not None:
            reading.usage = TokenUsage(usage.prompt_tokens, usage.completion_tokens)
    for choice in choices:
        if choice.usage is not _ABSENT:
            reading.has_usage = True
            at_choice = read_usage(msgspec.json.decode(choice.usage))
            reading.usage = reading.usage or at_choice
    return reading


def _texts(choice: int, delta: _Delta) -> list[tuple[Hashable, str]]:
    texts: list[tuple[Hashable, str]] = []
    if delta.content:
        texts.append((choice, delta.content))
    # vLLM and others send reasoning under both names at once: it counts once.
    if reasoning := delta.reasoning or delta.reasoning_content:
        texts.append(((choice, "reasoning"), reasoning))
    if delta.refusal:
        texts.append(((choice, "refusal"), delta.refusal))
    if delta.tool_calls or delta.function_call:
        texts.extend(_call_texts(choice, delta))
    return texts


def _call_texts(choice: int, delta: _Delta) -> Iterator[tuple[Hashable, str]]:
    for call in delta.tool_calls or ():
        if call.function is not None:
            yield (choice, call.index), call.function.name or ""
            yield (choice, call.index), call.function.arguments or ""
    if delta.function_call is not None:
        yield (choice, "function"), delta.function_call.name or ""
        yield (choice, "function"), delta.function_call.arguments or ""


def _read_untyped(data: bytes, text_member: str) -> Reading | None:
    """Read any JSON object, taking what has the right type and skipping the rest."""
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(chunk, dict):
        return None
    reading = Reading(has_usage="usage" in chunk, usage=read_usage(chunk.get("usage")))
    choices = chunk.get("choices")
    choices = choices if isinstance(choices, list) else []
    for choice in choices:
        if isinstance(choice, dict):
            _add_choice(reading, choice, text_member)
    reported = chunk.get("error")
    if reported is None and chunk.get("object") == "error":
        reported = chunk
    if reported is not None:
        reading.error = read_error(reported)
    return reading


def _add_choice(reading: Reading, choice: dict[str, Any], text_member: str) -> None:
    given = choice.get("index")
    index = given if type(given) is int else 0
    reading.choices = [*reading.choices, index]
    finish = choice.get("finish_reason")
    if isinstance(finish, str):
        reading.finishes = [*reading.finishes, (index, finish)]
    if "usage" in choice:
        reading.has_usage = True
        reading.usage = reading.usage or read_usage(choice["usage"])
    delta = choice.get(text_member)
    if isinstance(delta, dict):
        reading.texts = [*reading.texts, *_texts(index, _typed_delta(delta))]


def _typed_delta(delta: dict[str, Any]) -> _Delta:
    calls = delta.get("tool_calls")
    return _Delta(
        content=_text(delta.get("content")),
        reasoning=_text(delta.get("reasoning")),
        reasoning_content=_text(delta.get("reasoning_content")),
        refusal=_text(delta.get("refusal")),
        tool_calls=[
            _ToolCall(position, _typed_function(call.get("function")))
            for position, call in enumerate(calls if isinstance(calls, list) else ())
            if isinstance(call, dict)
        ],
        function_call=_typed_function(delta.get("function_call")),
    )


def _typed_function(function: object) -> _Function | None:
    if not isinstance(function, dict):
        return None
    return _Function(_text(function.get("name")), _text(function.get("arguments")))


def _text(value: object) -> str | None:
    """Text as it may stand: a string, or a list of parts that hold ``text``."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return None
