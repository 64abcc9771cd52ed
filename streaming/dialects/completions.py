"""The completions dialect: ``text_completion`` events and answers, text by choice."""

from collections.abc import Iterator
from typing import override

import msgspec

from streaming.dialects.reading import DONE, NOTHING, Dialect, Reading, TokenUsage
from streaming.dialects.untyped import Member, as_text, read_object

_ABSENT = msgspec.Raw(b"")


class _Choice(msgspec.Struct, gc=False):
    text: str
    index: int = 0
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice]
    usage: TokenUsage | msgspec.UnsetType | None = msgspec.UNSET
    error: msgspec.Raw = _ABSENT


_decode = msgspec.json.Decoder(_Chunk).decode


class CompletionsDialect(Dialect):
    """Events of the legacy endpoint; several prompts and choices share one index."""

    @override
    def read(self, data: bytes) -> Reading:
        """Read one event's payload."""
        if data == b"[DONE]":
            return DONE
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return read_object(data, _texts) or NOTHING
        if chunk.error is not _ABSENT:
            return read_object(data, _texts) or NOTHING
        usage = chunk.usage
        return Reading(
            texts=[(one.index, one.text) for one in chunk.choices if one.text],
            finishes=[
                (one.index, one.finish_reason)
                for one in chunk.choices
                if one.finish_reason is not None
            ],
            choices=[one.index for one in chunk.choices],
            usage=usage if isinstance(usage, TokenUsage) else None,
            has_usage=usage is not msgspec.UNSET,
        )

    @override
    def read_answer(self, body: bytes) -> Reading | None:
        """Read a whole answer; None when it is not a JSON object."""
        return read_object(body, _texts)


def _texts(index: int, choice: Member) -> Iterator[tuple[int, str]]:
    text = as_text(choice.get("text"))
    if text:
        yield index, text
