"""The completions dialect: ``text_completion`` events and answers, text by choice."""

from collections.abc import Iterator
from typing import override

import msgspec

from streaming.dialects.chunk import Chunk, read_event
from streaming.dialects.reading import Dialect, Reading, TokenUsage
from streaming.dialects.untyped import Member, as_text, read_object


class _Choice(msgspec.Struct, gc=False):
    text: str
    index: int = 0
    finish_reason: str | None = None


_decode = msgspec.json.Decoder(Chunk[_Choice]).decode


class CompletionsDialect(Dialect):
    """Events of the legacy endpoint; several prompts and choices share one index."""

    @override
    def read(self, data: bytes) -> Reading:
        """Read one event's payload."""
        return read_event(data, _decode, _read_chunk, _texts)

    @override
    def read_answer(self, body: bytes) -> Reading | None:
        """Read a whole answer; None when it is not a JSON object."""
        return read_object(body, _texts)


def _read_chunk(chunk: Chunk[_Choice]) -> Reading:
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


def _texts(index: int, choice: Member) -> Iterator[tuple[int, str]]:
    text = as_text(choice.get("text"))
    if text:
        yield index, text
