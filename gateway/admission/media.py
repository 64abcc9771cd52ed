"""Tokens of what a prompt carries besides text, judged by size; nothing is fetched.

========== ==================================================================
image      OpenAI's tile rule, on the pixels that an inline header states: the
           image is shrunk to 2048 pixels at its longer and 768 at its shorter
           side, and costs 85 and 170 for each tile of 512. A remote or
           unreadable one costs as much as the largest; ``detail: low`` is 85.
recording  One token for 100 bytes: OpenAI counts ten a second, and speech is
           hardly ever coded below 8 kbit/s.
file       As text of its size.
========== ==================================================================

Recordings and files that are not inline cost nothing here: nothing is known of them.
"""

import binascii
import math
import struct
from collections.abc import Mapping

from gateway.admission.tokenizer import tokens_from_bytes

LOW_DETAIL_TOKENS = 85
TILE_TOKENS = 170
LARGEST_IMAGE_TOKENS = LOW_DETAIL_TOKENS + 2 * 4 * TILE_TOKENS

_BYTES_PER_RECORDING_TOKEN = 100
_HEADER_CHARACTERS = 131_072  # of base64: a JPEG states its size after its metadata
_JPEG_SEGMENTS = 64  # looked at, at most
_FILL = 0xFF
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

type Pixels = tuple[int, int]
"""Width and height."""


def image_tokens(part: Mapping[str, object]) -> int:
    """An ``image_url`` or ``input_image`` part, its address in an object or bare."""
    image = part.get("image_url")
    detail = part.get("detail")
    if isinstance(image, Mapping):
        detail = image.get("detail")
        image = image.get("url")
    if detail == "low":
        return LOW_DETAIL_TOKENS
    pixels = _pixels(_decode(_inline(image)[:_HEADER_CHARACTERS]))
    return LARGEST_IMAGE_TOKENS if pixels is None else _tile_tokens(*pixels)


def recording_tokens(part: Mapping[str, object]) -> int:
    """An ``input_audio`` part, or vLLM's ``audio_url`` and ``video_url``."""
    return math.ceil(_inline_bytes(part) / _BYTES_PER_RECORDING_TOKEN)


def file_tokens(part: Mapping[str, object]) -> int:
    """A ``file`` part, or an ``input_file``."""
    return tokens_from_bytes(_inline_bytes(part))


def _inline_bytes(part: Mapping[str, object]) -> int:
    """What the base64 text in a part stands for, wherever its kind keeps it."""
    size = 0
    for member in (part, *part.values()):
        if isinstance(member, Mapping):
            bare = (member.get("data"), member.get("file_data"))
            for text in (*bare, _inline(member.get("url"))):
                size += len(text) * 3 // 4 if isinstance(text, str) else 0
    return size


def _inline(url: object) -> str:
    """The base64 text of a ``data:`` URL; empty for anything else."""
    if not isinstance(url, str) or url[:5].lower() != "data:":
        return ""
    head, _, payload = url.partition(",")
    return payload if head.endswith(";base64") else ""


def _decode(payload: str) -> bytes:
    """The bytes; none if it is not base64."""
    try:
        return binascii.a2b_base64(payload.rstrip("=") + "===")
    except ValueError:  # also what is not ASCII
        return b""


def _tile_tokens(width: int, height: int) -> int:
    scale = min(1.0, 2048 / max(width, height), 768 / min(width, height))
    across, down = (
        math.ceil(max(1, round(side * scale)) / 512) for side in (width, height)
    )
    return LOW_DETAIL_TOKENS + TILE_TOKENS * across * down


def _pixels(head: bytes) -> Pixels | None:
    """The size an image's first bytes state; None when they state none."""
    try:
        size = _stated_pixels(head)
    except struct.error:  # cut short
        return None
    return size if size is not None and min(size) > 0 else None


def _stated_pixels(head: bytes) -> Pixels | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack_from(">II", head, 16)
    elif head.startswith((b"GIF87a", b"GIF89a")):
        width, height = struct.unpack_from("<HH", head, 6)
    elif head.startswith(b"\xff\xd8"):
        return _jpeg_pixels(head)
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _webp_pixels(head)
    else:
        return None
    return width, height


def _jpeg_pixels(head: bytes) -> Pixels | None:
    """Of the first frame header (ITU T.81, B.2.2); segments before it are skipped."""
    at = 2
    for _ in range(_JPEG_SEGMENTS):
        prefix, marker, length = struct.unpack_from(">BBH", head, at)
        if prefix != _FILL:
            return None
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", head, at + 5)
            return width, height
        at += 1 if marker == _FILL else 2 + length
    return None


def _webp_pixels(head: bytes) -> Pixels | None:
    """Of the first chunk (RFC 9649, 2.5 to 2.7)."""
    match head[12:16]:
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", head, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            low, high, down_low, down_high = struct.unpack_from("<HBHB", head, 24)
            return (high << 16 | low) + 1, (down_high << 16 | down_low) + 1
        case _:
            return None
