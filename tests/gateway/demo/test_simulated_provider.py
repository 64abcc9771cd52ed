"""The simulated provider on the wire: beside recorded vLLM, and with rude clients."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.abc import SocketStream
from openai import AsyncOpenAI

from gateway.demo.attempts import Attempt, End
from gateway.demo.scenario import SimulatorSettings
from gateway.demo.simulated import SimulatedProvider, serve_simulated

pytestmark = pytest.mark.anyio

TRANSCRIPTS = Path(__file__).parents[2] / "transcripts" / "vllm"
STREAMS = (
    "chat_stream",
    "chat_stream_usage",
    "chat_stream_usage_continuous",
    "compl_stream_usage",
)
ASK = [{"role": "user", "content": "Tell me about rivers."}]


@pytest.fixture
async def provider() -> AsyncIterator[SimulatedProvider]:
    settings = SimulatorSettings(rate=0, first_token_ms=0, chunk_tokens=1)
    async with SimulatedProvider(settings) as provider:
        yield provider


async def connect(provider: SimulatedProvider) -> SocketStream:
    return await anyio.connect_tcp("127.0.0.1", provider.port)


def post(model: str, **members: object) -> bytes:
    body = {"model": model, "messages": ASK, "stream": True} | members
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {len(content)}"
    return f"{head}\r\n\r\n".encode() + content


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        for _ in iter(condition, True):
            await anyio.sleep(0.001)


async def end_of_last(provider: SimulatedProvider) -> Attempt:
    await until(lambda: provider.log[-1].end is not None)
    return provider.log[-1]


async def read_all(stream: SocketStream) -> bytes:
    received = b""
    with anyio.fail_after(5):
        async for data in stream:
            received += data
    return received


def body_of(raw: bytes) -> bytes:
    head, _, body = raw.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head:
        return body
    whole = b""
    while body != b"0\r\n\r\n":
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        assert body[length : length + 2] == b"\r\n"
        whole, body = whole + body[:length], body[length + 2 :]
    return whole


def events_of(raw: bytes) -> list[bytes]:
    body = body_of(raw)
    assert body.endswith(b"\n\n")
    return [event.removeprefix(b"data: ") for event in body[:-2].split(b"\n\n")]


def shape(value: object) -> object:
    """Members in their order, and the kinds of their values."""
    if isinstance(value, dict):
        return [(key, shape(member)) for key, member in value.items()]
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


def shapes(events: list[bytes]) -> list[object]:
    """Of each event, like ones in a row only once: vLLM may send tokens together."""
    return [key for key, _ in groupby(shape(json.loads(event)) for event in events)]


def recorded(name: str) -> tuple[bytes, bytes]:
    request = (TRANSCRIPTS / f"{name}.req").read_bytes()
    return request, (TRANSCRIPTS / f"{name}.raw").read_bytes()


async def replay(provider: SimulatedProvider, request: bytes) -> bytes:
    async with await connect(provider) as stream:
        await stream.send(request)
        return await read_all(stream)


@pytest.mark.parametrize("name", STREAMS)
async def test_stream_has_the_shape_of_vllm_when_asked_the_same(
    provider: SimulatedProvider, name: str
) -> None:
    request, vllm = recorded(name)
    *ours, our_last = events_of(await replay(provider, request))
    *theirs, their_last = events_of(vllm)
    assert our_last == their_last == b"[DONE]"
    assert shapes(ours) == shapes(theirs)


@pytest.mark.parametrize("name", ["chat_nonstream", "compl_nonstream"])
async def test_answer_has_the_shape_of_vllm_when_asked_the_same(
    provider: SimulatedProvider, name: str
) -> None:
    request, vllm = recorded(name)
    ours = await replay(provider, request)
    assert shape(json.loads(body_of(ours))) == shape(json.loads(body_of(vllm)))


@pytest.mark.parametrize("name", ["err_maxtok_neg", "err_stream_options_nonstream"])
async def test_refusal_is_that_of_vllm_when_asked_the_same(
    provider: SimulatedProvider, name: str
) -> None:
    request, vllm = recorded(name)
    ours = await replay(provider, request)
    assert ours.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert body_of(ours) == body_of(vllm)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "Bad Request"),
        (b"{", "Bad Request"),
        (b"[]", "Bad Request"),
        (b"{}", "Bad Request"),
        (b"\xff", "Bad Request"),
        (b'{"messages":1}', "Bad Request"),
        (b'{"messages":[]}', "BadRequestError"),
        (b'{"messages":[{"content":"Hi"}],"n":0}', "BadRequestError"),
    ],
)
async def test_request_is_refused_when_it_cannot_be_served(
    provider: SimulatedProvider, body: bytes, kind: str
) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\n"
    length = b"content-length: %d\r\n\r\n" % len(body)
    raw = await replay(provider, head + length + body)
    assert raw.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body_of(raw))["error"]["type"] == kind
    assert provider.log[0].end is End.COMPLETED


async def test_connection_is_used_again_when_the_answer_was_whole(
    provider: SimulatedProvider,
) -> None:
    async with await connect(provider) as stream:
        for count in range(1, 4):
            await stream.send(post("sim-t3", stream=False))
            received = await stream.receive()
            assert received.startswith(b"HTTP/1.1 200 OK\r\n")
            assert (await end_of_last(provider)).end is End.COMPLETED
            assert len(provider.log) == count
            assert provider.open_connections == 1


async def test_connection_is_closed_when_idle_for_too_long() -> None:
    settings = SimulatorSettings(keep_alive_seconds=0.05)
    async with SimulatedProvider(settings) as provider:
        raw = await replay(provider, b"GET /health HTTP/1.1\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_first_token_comes_after_the_head_when_it_takes_its_time(
    provider: SimulatedProvider,
) -> None:
    async with await connect(provider) as stream:
        started = time.monotonic()
        await stream.send(post("sim-f300-t1"))
        head = await stream.receive()
        assert head.endswith(b"\r\n\r\n")
        assert time.monotonic() - started < 0.25
        assert b'"role"' in await stream.receive()
        assert time.monotonic() - started >= 0.295


@pytest.mark.parametrize(
    "model", ["sim-r100", "sim-xhang-before-headers", "sim-r0-f9999"]
)
async def test_log_has_the_moment_of_the_close_when_the_client_leaves(
    provider: SimulatedProvider, model: str
) -> None:
    async with await connect(provider) as stream:
        await stream.send(post(model, stream=model != "sim-r0-f9999"))
        await until(lambda: provider.in_flight == 1)
        await anyio.sleep(0.05)
        closed = time.monotonic_ns()
    attempt = await end_of_last(provider)
    assert attempt.end is End.CLIENT_CLOSED
    assert attempt.ended is not None
    assert 0 <= attempt.ended.monotonic_ns - closed < 50e6
    assert provider.in_flight == 0
    sent = attempt.tokens
    await anyio.sleep(0.05)
    assert attempt.tokens == sent


@pytest.mark.parametrize("model", ["sim-r100", "sim-r0-t1000000"])
async def test_half_close_is_leaving_when_an_answer_is_going_on(
    provider: SimulatedProvider, model: str
) -> None:
    async with await connect(provider) as stream:
        await stream.send(post(model))
        await until(lambda: provider.in_flight == 1)
        await anyio.sleep(0.2)  # by now the unpaced one waits for its reader
        await stream.send_eof()
        assert (await end_of_last(provider)).end is End.CLIENT_CLOSED
        await until(lambda: provider.open_connections == 0)


@pytest.mark.parametrize("model", ["sim-r0-t1000000", "sim-r200000-t1000000"])
async def test_nothing_is_made_when_the_reader_stops_reading(
    provider: SimulatedProvider, model: str
) -> None:
    async with await connect(provider) as stream:
        await stream.send(post(model))
        await stream.receive(100)
        attempt = provider.log[0]
        written = -1
        with anyio.fail_after(10):
            while written != attempt.bytes_written:
                written = attempt.bytes_written
                await anyio.sleep(0.2)
        assert 0 < attempt.tokens < 100_000
        stopped_at = attempt.tokens
        for _ in range(200):
            await stream.receive()
        with anyio.fail_after(5):
            while attempt.tokens == stopped_at:
                await stream.receive()


async def test_sim_routes_tell_and_forget_what_happened(
    provider: SimulatedProvider,
) -> None:
    async with httpx.AsyncClient(base_url=provider.base_url) as client:
        await client.post(
            "/completions",
            json={"model": "sim-t2", "prompt": "Hi"},
            headers={"x-request-id": "mine"},
        )
        (entry,) = (await client.get("../sim/log")).json()
        assert (entry["request_id"], entry["end"]) == ("mine", "completed")
        assert (entry["tokens"], entry["stream"]) == (2, False)
        assert entry["bytes_written"] > 100
        moments = [entry[name] for name in ("started", "first_byte", "ended")]
        for clock in ("wall_ns", "monotonic_ns"):
            values = [moment[clock] for moment in moments]
            assert values == sorted(values)
        assert (await client.delete("../sim/log")).json() == []
        assert (await client.get("../sim/log")).json() == []
        assert (await client.get("../sim/stats")).json() == {
            "open_connections": 1,
            "in_flight": 0,
            "attempts": 1,
        }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/health", 200), ("GET", "/v2", 404), ("GET", "/v1/completions", 405)],
)
async def test_route_answers_like_vllm_when_nothing_is_generated(
    provider: SimulatedProvider, method: str, path: str, status: int
) -> None:
    async with httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{provider.port}{path}"
        assert (await client.request(method, url)).status_code == status
    assert not provider.log


@pytest.mark.parametrize(
    "data", [b"nonsense\r\n\r\n", post("sim-xhang-before-first") * 2]
)
async def test_connection_is_cut_when_the_client_does_not_keep_to_http(
    provider: SimulatedProvider, data: bytes
) -> None:
    async with await connect(provider) as stream:
        await stream.send(data)
        with suppress(anyio.BrokenResourceError):  # reset or closed, but not open
            await read_all(stream)
    await until(lambda: provider.open_connections == 0)


async def test_attempt_is_stopped_when_the_provider_closes() -> None:
    async with SimulatedProvider() as provider:
        stream = await connect(provider)
        await stream.send(post("sim-xhang-before-first"))
        await stream.receive()
    await stream.aclose()
    assert provider.log[0].end is End.STOPPED
    assert provider.open_connections == 0


async def test_serve_simulated_listens_until_it_is_cancelled() -> None:
    told: list[str] = []
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            await serve_simulated(
                SimulatorSettings(), "127.0.0.1", 0, listening=told.append
            )

        tasks.start_soon(serve)
        await until(lambda: bool(told))
        async with AsyncOpenAI(base_url=told[0], api_key="none") as client:
            assert [model.id async for model in client.models.list()] == ["sim"]
        tasks.cancel_scope.cancel()
