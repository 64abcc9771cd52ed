"""``/v1/embeddings`` of the simulated provider: vectors made of the text alone."""

import base64
import hashlib
import struct
from typing import Final, Literal

import msgspec

from gateway.demo.generation import Malformed

_DIMENSIONS: Final = 8

type _Text = str | list[int]


class _Body(msgspec.Struct):
    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None


_decode: Final = msgspec.json.Decoder(_Body).decode


def embeddings(body: bytes, default_model: str) -> dict[str, object]:
    """The answer, as vLLM 0.32 writes it; a word or a token id is one token.

    Raises:
        Malformed: The body is no JSON, or a member is missing or of a wrong type.
    """
    try:
        asked = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from error
    texts = _texts(asked.input)
    tokens = sum(len(one.split() if isinstance(one, str) else one) for one in texts)
    return {
        "object": "list",
        "model": asked.model or default_model,
        "data": [
            {
                "index": index,
                "object": "embedding",
                "embedding": _vector(one, asked.encoding_format),
            }
            for index, one in enumerate(texts)
        ],
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "completion_tokens": 0,
        },
    }


def _texts(given: str | list[str | int | list[int]]) -> list[_Text]:
    if isinstance(given, str):
        return [given]
    ids = [one for one in given if isinstance(one, int)]
    return [ids] if ids else [one for one in given if not isinstance(one, int)]


def _vector(text: _Text, encoding: str | None) -> list[float] | str:
    digest = hashlib.sha256(str(text).encode()).digest()
    numbers = [byte / 255 for byte in digest[:_DIMENSIONS]]
    if encoding == "base64":
        return base64.b64encode(struct.pack(f"<{_DIMENSIONS}f", *numbers)).decode()
    return numbers
