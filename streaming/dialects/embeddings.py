"""The embeddings dialect: whole answers only, and usage of the prompt."""

from typing import override

import msgspec

from streaming.dialects.reading import NOTHING, Dialect, Reading
from streaming.dialects.untyped import read_object

_SPOKEN = ("usage", "error")
_ERROR = b'"error"'
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class EmbeddingsDialect(Dialect):
    """Answers whose vectors nobody here needs to see."""

    @override
    def read(self, data: bytes) -> Reading:
        """There are no events."""
        return read_object(data, lambda _index, _choice: ()) or NOTHING

    @override
    def read_answer(self, body: bytes) -> Reading | None:
        """Read a whole answer; None when it is not a JSON object."""
        try:
            members = _decode_members(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        kind = members.get("object")
        if kind is not None and bytes(kind) == _ERROR:  # told by its other members
            return read_object(body, lambda _index, _choice: ())
        spoken = {name: members[name] for name in _SPOKEN if name in members}
        return read_object(msgspec.json.encode(spoken), lambda _index, _choice: ())
