"""The embeddings dialect: whole answers only, and usage of the prompt."""

from typing import override

from streaming.dialects.reading import NOTHING, Dialect, Reading
from streaming.dialects.untyped import read_object


class EmbeddingsDialect(Dialect):
    """Answers whose vectors nobody here needs to see."""

    @override
    def read(self, data: bytes) -> Reading:
        """There are no events."""
        return read_object(data, lambda _index, _choice: ()) or NOTHING

    @override
    def read_answer(self, body: bytes) -> Reading | None:
        """Read a whole answer; None when it is not a JSON object."""
        return read_object(body, lambda _index, _choice: ())
