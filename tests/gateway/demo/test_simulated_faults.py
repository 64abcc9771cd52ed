"""Each fault, seen on a raw socket, is what its name says."""

import gzip
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from gateway.demo.attempts import Attempt, End
from gateway.demo.scenario import Fault, SimulatorSettings
from gateway.demo.simulated import SimulatedProvider

pytestmark = pytest.mark.anyio

TRANSCRIPTS = Path(__file__).parents[2] / "transcripts" / "vllm"
LAST_CHUNK = b"0\r\n\r\n"
SILENCE_SECONDS = 0.1


@dataclass(frozen=True)
class Seen:
    """What a client saw; ``end`` is ``whole``, ``eof``, ``reset`` or ``silence``."""

    raw: bytes
    end: str
    attempt: Attempt

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def head(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        body = self.raw.partition(b"\r\n\r\n")[2]
        if b"transfer-encoding: chunked" not in self.head:
            return body
        whole = b""
        while body and body != LAST_CHUNK:
            size, _, body = body.partition(b"\r\n")
            length = int(size, 16)
            whole, body = whole + body[:length], body[length + 2 :]
        return whole

    @property
    def events(self) -> list[bytes]:
        return [part.removeprefix(b"data: ") for part in self.body.split(b"\n\n")[:-1]]

    @property
    def said(self) -> list[str]:
        """The contents, up to the first event that is no JSON."""
        choices = [json.loads(event)["choices"] for event in self.events]
        return [choice["delta"].get("content") for (choice,) in choices]


@pytest.fixture
async def provider() -> AsyncIterator[SimulatedProvider]:
    settings = SimulatorSettings(
        rate=0, tokens=12, first_token_ms=0, chunk_tokens=1, event_megabytes=1
    )
    async with SimulatedProvider(settings) as provider:
        yield provider


def is_whole(raw: bytes) -> bool:
    head, blank, body = raw.partition(b"\r\n\r\n")
    if not blank:
        return False
    if b"chunked" in head:
        return body.endswith(b"\r\n" + LAST_CHUNK) or body == LAST_CHUNK
    return len(body) == int(head.partition(b"content-length: ")[2].split()[0])


async def ask(
    provider: SimulatedProvider,
    fault: Fault,
    *,
    settings: str = "",
    stream: bool = True,
) -> Seen:
    """One request and all that comes of it."""
    body: dict[str, object] = {
        "model": f"sim{settings}-x{fault}",
        "messages": [{"content": "Hi"}],
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    content = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n"
    raw, end = b"", "whole"
    async with await anyio.connect_tcp("127.0.0.1", provider.port) as connection:
        await connection.send(head % len(content) + content)
        try:
            while not is_whole(raw):
                with anyio.fail_after(SILENCE_SECONDS):
                    raw += await connection.receive()
        except TimeoutError:
            end = "silence"
        except anyio.EndOfStream:
            end = "eof"
        except anyio.BrokenResourceError:
            end = "reset"
    with anyio.fail_after(5):
        for _ in iter(lambda: provider.log[-1].end is None, False):
            await anyio.sleep(0.001)
    return Seen(raw, end, provider.log[-1])


async def test_reset_before_headers(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.RESET_BEFORE_HEADERS)
    assert (seen.raw, seen.end) == (b"", "reset")


async def test_hang_before_headers(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.HANG_BEFORE_HEADERS)
    assert (seen.raw, seen.end) == (b"", "silence")
    assert seen.attempt.end is End.CLIENT_CLOSED
    assert seen.attempt.first_byte is None


async def test_hang_before_first(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.HANG_BEFORE_FIRST)
    assert (seen.status, seen.body, seen.end) == (200, b"", "silence")


async def test_hang_mid_stream(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.HANG_MID_STREAM, settings="-a3")
    assert (seen.said, seen.end) == (["", "A", " river", " is"], "silence")
    assert seen.attempt.tokens == 3


async def test_reset_mid_stream(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.RESET_MID_STREAM, settings="-a3")
    assert seen.end == "reset"
    assert seen.said == ["", "A", " river", " is"]
    assert not seen.body.endswith(b"\n\n")
    assert seen.attempt.end is End.FAULT


async def test_truncate(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.TRUNCATE, settings="-a3")
    assert (seen.said, seen.end) == (["", "A", " river", " is"], "whole")


async def test_close_on_reuse(provider: SimulatedProvider) -> None:
    content = b'{"model":"sim-xclose-on-reuse","messages":[{"content":"Hi"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n"
    request = head % len(content) + content
    async with await anyio.connect_tcp("127.0.0.1", provider.port) as connection:
        await connection.send(request)
        raw = b""
        while not is_whole(raw):
            raw += await connection.receive()
        await connection.send(request)
        with pytest.raises(anyio.EndOfStream):
            await connection.receive()
    assert [attempt.bytes_written > 0 for attempt in provider.log] == [True, False]


async def test_abort(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.ABORT, settings="-a3")
    *_, last, usage, done = seen.events
    assert json.loads(last)["choices"][0]["finish_reason"] == "abort"
    assert json.loads(usage)["usage"]["completion_tokens"] == 3
    assert (done, seen.end) == (b"[DONE]", "whole")


@pytest.mark.parametrize(
    ("fault", "name", "last"),
    [
        (Fault.ERROR_FIRST, "bad_logit_bias_s", 2),
        (Fault.ERROR_MID_STREAM, "engine_killed_stream", 2),
        (Fault.ABORT, "sigterm_stream", 3),
    ],
)
async def test_fault_ends_like_vllm_when_vllm_was_seen_to_do_it(
    provider: SimulatedProvider, fault: Fault, name: str, last: int
) -> None:
    def keys(event: bytes) -> list[str]:
        content = json.loads(event)
        return [*content, *content.get("error", ()), *content.get("usage", ())]

    seen = await ask(provider, fault)
    raw = (TRANSCRIPTS / f"{name}.raw").read_bytes()
    vllm = Seen(raw, "whole", seen.attempt)
    *ours, done = seen.events[-last:]
    *theirs, their_done = vllm.events[-last:]
    assert done == their_done == b"[DONE]"
    assert [keys(event) for event in ours] == [keys(event) for event in theirs]
    assert len(seen.events) == last or fault is not Fault.ERROR_FIRST
    assert len(seen.events) == 8 or fault is not Fault.ERROR_MID_STREAM


@pytest.mark.parametrize(
    ("fault", "status", "content_type", "body"),
    [
        (Fault.STATUS_401, 401, b"application/json", b'{"error":"Unauthorized"}'),
        (Fault.STATUS_429, 429, b"application/json", b'"code":429}}'),
        (Fault.STATUS_500_PLAIN, 500, b"text/plain", b"Internal Server Error"),
        (Fault.STATUS_503, 503, b"application/json", b'"code":503}}'),
        (Fault.REDIRECT_307, 307, b"application/json", b""),
        (Fault.HTML_200, 200, b"text/html", b"</html>"),
        (Fault.JSON_ERROR_200, 200, b"application/json", b'"code":500}}'),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_refusal_has_its_status_and_type(
    provider: SimulatedProvider,
    *,
    fault: Fault,
    status: int,
    content_type: bytes,
    body: bytes,
    stream: bool,
) -> None:
    seen = await ask(provider, fault, stream=stream)
    assert (seen.status, seen.end, seen.attempt.end) == (status, "whole", End.FAULT)
    assert b"content-type: " + content_type in seen.head
    assert seen.body.endswith(body)
    assert (b"retry-after: 1" in seen.head) == (status == 429)
    assert (b"location: /" in seen.head) == (status == 307)


async def test_status_401_is_that_of_vllm(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.STATUS_401)
    assert (TRANSCRIPTS / "noauth.raw").read_bytes().endswith(b"\r\n" + seen.body)


async def test_gzip(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.GZIP)
    assert b"content-encoding: gzip" in seen.head
    assert gzip.decompress(seen.body).endswith(b"data: [DONE]\n\n")


async def test_gzip_bomb(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.GZIP_BOMB, settings="-m3")
    assert b"content-encoding: gzip" in seen.head
    assert len(seen.body) < 10_000
    assert gzip.decompress(seen.body) == bytes(3_000_000)


async def test_garbage(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.GARBAGE)
    for junk in seen.events[6:]:
        with pytest.raises(ValueError, match=r"."):
            json.loads(junk)
    assert len(seen.events) > 6
    assert seen.end == "whole"


async def test_big_event(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.BIG_EVENT)
    tail = seen.body.rpartition(b"\n\n")[2]
    assert tail == b'data: {"id":"' + b"a" * 1_000_000
    assert seen.end == "silence"


async def test_no_done(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.NO_DONE)
    assert json.loads(seen.events[-1])["usage"]["completion_tokens"] == 12
    assert seen.end == "whole"


async def test_done_then_open(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.DONE_THEN_OPEN)
    assert (seen.events[-1], seen.end) == (b"[DONE]", "silence")
    assert seen.attempt.tokens == 12


async def test_usage_on_finish(provider: SimulatedProvider) -> None:
    seen = await ask(provider, Fault.USAGE_ON_FINISH)
    finish = json.loads(seen.events[-2])
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert finish["usage"]["completion_tokens"] == 12
    assert sum(b'"usage"' in event for event in seen.events) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_no_usage(provider: SimulatedProvider, *, stream: bool) -> None:
    seen = await ask(provider, Fault.NO_USAGE, stream=stream)
    assert b'"usage"' not in seen.body
    assert b'"finish_reason":"stop"' in seen.body


async def test_slow_drip(provider: SimulatedProvider) -> None:
    started = time.monotonic()
    seen = await ask(provider, Fault.SLOW_DRIP, settings="-t1-d0.1")
    assert time.monotonic() - started >= len(seen.raw) * 0.0001
    assert (seen.events[-1], seen.end) == (b"[DONE]", "whole")
    assert seen.attempt.bytes_written == len(seen.raw)


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        (Fault.HANG_BEFORE_FIRST, "silence"),
        (Fault.HANG_MID_STREAM, "silence"),
        (Fault.RESET_MID_STREAM, "reset"),
        (Fault.TRUNCATE, "whole"),
        (Fault.BIG_EVENT, "silence"),
        (Fault.GARBAGE, "whole"),
    ],
)
async def test_json_is_never_whole_when_the_answer_is_not_streamed(
    provider: SimulatedProvider, fault: Fault, end: str
) -> None:
    seen = await ask(provider, fault, stream=False)
    assert (seen.status, seen.end) == (200, end)
    assert b"application/json" in seen.head
    with pytest.raises(ValueError, match=r"."):
        json.loads(seen.body)


@pytest.mark.parametrize(
    ("fault", "status"), [(Fault.ERROR_FIRST, 400), (Fault.ERROR_MID_STREAM, 500)]
)
async def test_error_has_a_status_when_the_answer_is_not_streamed(
    provider: SimulatedProvider, fault: Fault, status: int
) -> None:
    seen = await ask(provider, fault, stream=False)
    assert (seen.status, json.loads(seen.body)["error"]["code"]) == (status, status)


async def test_default_fault_strikes_when_the_model_names_none() -> None:
    settings = SimulatorSettings(fault=Fault.STATUS_503)
    async with (
        SimulatedProvider(settings) as provider,
        await anyio.connect_tcp("127.0.0.1", provider.port) as connection,
    ):
        await connection.send(
            b'POST /v1/completions HTTP/1.1\r\ncontent-length: 13\r\n\r\n{"prompt":""}'
        )
        assert (await connection.receive()).startswith(b"HTTP/1.1 503 ")
        assert provider.log[0].fault is Fault.STATUS_503
