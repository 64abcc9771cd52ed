import struct
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.media import (
    LARGEST_IMAGE_TOKENS,
    LOW_DETAIL_TOKENS,
    file_tokens,
    image_tokens,
    recording_tokens,
)

# The first bytes of images that Pillow wrote.
GIF = b"GIF87a\x80\x02\xe0\x01\x80\x00\x00"  # 640 × 480
WEBP_LOSSY = (  # 1536 × 1024
    b'RIFF"\x0b\x00\x00WEBPVP8 \x16\x0b\x00\x00\xd0M\x01\x9d\x01*\x00\x06\x00\x04'
)
WEBP_LOSSLESS = (
    b"RIFF:\x00\x00\x00WEBPVP8L.\x00\x00\x00/\xb7\xcb1\x00\x07"  # 3000 × 200
)
WEBP_EXTENDED = (  # 513 × 512
    b"RIFF\xca\x00\x00\x00WEBPVP8X\n\x00\x00\x00\x08\x00\x00\x00\x00\x02\x00\xff\x01\x00"
)


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", width, height)


def jpeg(width: int, height: int, metadata: int = 2, frame: int = 0xC0) -> bytes:
    segment = b"\xff\xe1" + struct.pack(">H", metadata) + bytes(metadata - 2)
    size = struct.pack(">HBHH", 17, 8, height, width)
    return b"\xff\xd8" + segment + b"\xff\xff" + bytes([frame]) + size


def image(content: bytes, detail: object = None) -> dict[str, object]:
    url = "data:image/any;base64," + b64encode(content).decode()
    return {"type": "image_url", "image_url": {"url": url, "detail": detail}}


# The first two are OpenAI's own examples.
@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        (png(1024, 1024), 765),
        (png(2048, 4096), 1105),
        (png(4096, 2048), 1105),
        (png(1, 1), 255),
        (png(512, 512), 255),
        (png(513, 512), 425),
        (png(100_000, 1), 85 + 4 * 170),
        (png(2048, 768), LARGEST_IMAGE_TOKENS),
        (GIF, 85 + 2 * 170),
        (jpeg(2048, 4096), 1105),
        (jpeg(1920, 1080, metadata=65_535, frame=0xC2), 85 + 3 * 2 * 170),
        (WEBP_LOSSY, 85 + 3 * 2 * 170),
        (WEBP_LOSSLESS, 85 + 4 * 170),
        (WEBP_EXTENDED, 85 + 2 * 170),
    ],
)
def test_image_costs_its_tiles_when_its_header_states_its_size(
    content: bytes, tokens: int
) -> None:
    assert image_tokens(image(content)) == tokens
    assert image_tokens(image(content, "high")) == tokens
    assert image_tokens(image(content, "low")) == LOW_DETAIL_TOKENS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        png(0, 100),
        png(1024, 1024)[:20],
        b"\xff\xd8\xff\xe1\x00",
        b"\xff\xd8\x00\xe1\x00\x02",
        b"\xff\xd8" + b"\xff\xe1\x00\x02" * 100 + jpeg(8, 8)[2:],
        jpeg(8, 8, frame=0xC4),
        WEBP_LOSSY[:27],
        b"RIFF\x00\x00\x00\x00WEBPJUNK" + bytes(20),
    ],
)
def test_image_costs_the_most_when_its_header_cannot_be_read(content: bytes) -> None:
    assert image_tokens(image(content)) == LARGEST_IMAGE_TOKENS


@given(
    start=st.sampled_from([png(8, 8)[:16], jpeg(8, 8)[:4], GIF[:6], WEBP_LOSSY[:16]]),
    rest=st.binary(max_size=64),
)
def test_image_costs_something_between_when_its_header_is_garbage(
    start: bytes, rest: bytes
) -> None:
    assert LOW_DETAIL_TOKENS < image_tokens(image(start + rest)) <= LARGEST_IMAGE_TOKENS


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/cat.png",
        "data:image/png,%89PNG",
        "data:image/png;base64,é",
        "data:image/png;base64,A",
        "data:",
        None,
        7,
    ],
)
def test_image_costs_the_most_when_it_is_not_inline(url: object) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    assert image_tokens(part) == LARGEST_IMAGE_TOKENS


def test_image_may_have_its_address_bare() -> None:
    url = "DATA:image/png;base64," + b64encode(png(512, 512)).decode().rstrip("=")
    assert image_tokens({"type": "input_image", "image_url": url}) == 255
    low = {"type": "input_image", "image_url": url, "detail": "low"}
    assert image_tokens(low) == LOW_DETAIL_TOKENS


def test_recording_costs_a_token_for_a_hundred_bytes() -> None:
    data = b64encode(bytes(3_000)).decode()
    bare = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    url = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}
    assert recording_tokens(bare) == recording_tokens(url) == 30


def test_recording_costs_nothing_when_it_is_not_inline() -> None:
    remote = {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}
    assert recording_tokens(remote) == 0
    assert recording_tokens({"type": "input_audio", "input_audio": 7}) == 0


def test_file_costs_as_text_of_its_size() -> None:
    data = b64encode(bytes(3_000)).decode()
    nested = {"type": "file", "file": {"file_data": data, "filename": "a.pdf"}}
    assert file_tokens(nested) == 2_000
    assert file_tokens({"type": "input_file", "file_data": data}) == 2_000
    assert file_tokens({"type": "file", "file": {"file_id": "file-1"}}) == 0
