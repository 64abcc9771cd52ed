"""A chunk of a stream, decoded typed: what the dialects with choices have in common.

Only the members that metering needs are decoded. Whatever does not fit their types is
read again without types, member by member, so that an odd value costs time and never a
token.
"""

from collections.abc import Callable

import msgspec

from streaming.dialects.reading import DONE, NOTHING, Reading, TokenUsage
from streaming.dialects.untyped import TextsOf, read_object

ABSENT = msgspec.Raw(b"")


class Chunk[C](msgspec.Struct, gc=False):
    """An event, or a whole answer, with choices of this type.

    Attributes:
        choices: As the dialect knows them.
        usage: Unset where there is no such member.
        error: ``ABSENT`` where there is no such member.
    """

    choices: list[C]
    usage: TokenUsage | msgspec.UnsetType | None = msgspec.UNSET
    error: msgspec.Raw = ABSENT


def read_event[C](
    data: bytes,
    decode: Callable[[bytes], Chunk[C]],
    read_chunk: Callable[[Chunk[C]], Reading],
    texts_of: TextsOf,
) -> Reading:
    """Read one event's payload: typed where it can be, else with ``texts_of``."""
    if data == b"[DONE]":
        return DONE
    try:
        chunk = decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return read_object(data, texts_of) or NOTHING
    if chunk.error is not ABSENT:
        return read_object(data, texts_of) or NOTHING
    return read_chunk(chunk)
