"""Every framing of an answer, whole, split, cut short and malformed."""

from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint

from gateway.providers.transport import PooledTransport
from streaming.errors import UpstreamTruncated
from tests.gateway.providers.asking import ask, body_of, fetch, read, read_on
from tests.gateway.providers.raw_server import Peer, RawServer, Script

pytestmark = pytest.mark.anyio

TRANSCRIPTS = Path(__file__).parents[3] / "transcripts" / "vllm"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

WHOLE = {
    "content-length": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    "chunked": CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    "chunk extensions": CHUNKED + b'2;a=b\r\nhe\r\n3;c="d"\r\nllo\r\n0;e\r\n\r\n',
    "trailers": CHUNKED + b"5\r\nhello\r\n0\r\nx-sum: 1\r\nx-more: 2\r\n\r\n",
    "until the end": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "last coding is not chunked": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, x\r\n\r\nhello"
    ),
    "100 before it": b"HTTP/1.1 100 Continue\r\n\r\n"
    + CHUNKED
    + b"5\r\nhello\r\n0\r\n\r\n",
    "103 before it": (
        b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
    ),
}

CUT_SHORT = {
    "content-length": b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello",
    "inside a chunk": CHUNKED + b"6\r\nhello",
    "after a chunk": CHUNKED + b"5\r\nhello\r\n",
    "inside the last chunk": CHUNKED + b"5\r\nhello\r\n0\r\n",
    "not a chunk": CHUNKED + b"5\r\nhello\r\nzz\r\n",
    "chunk longer than it said": CHUNKED + b"5\r\nhello!\r\n",
}

NOT_HTTP = {
    "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n",
    "HTTP/2": b"HTTP/2 200 OK\r\ncontent-length: 0\r\n\r\n",
    "two lengths": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhello"
    ),
    "length and chunks": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
    ),
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    "folded field": b"HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 0\r\n\r\n",
    "switching protocols": (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"
    ),
    "long head": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 66_000 + b"\r\n\r\n",
    "many fields": b"HTTP/1.1 200 OK\r\n" + b"a: bcdefg\r\n" * 10_000 + b"\r\n",
    "endless field": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 1_000_000,
    "endless interim answers": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50_000,
}


def saying(*pieces: bytes) -> Script:
    """Send the pieces one by one, each in a packet of its own, and hang up."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for piece in pieces:
            await peer.send(piece)
            await checkpoint()  # the client, on the same loop, reads it
            await checkpoint()

    return script


def cut(data: bytes, *, size: int) -> Sequence[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("raw", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_body_is_exact_however_it_is_framed_and_split(
    transport: PooledTransport, raw: bytes, size: int
) -> None:
    async with RawServer(saying(*cut(raw, size=size))) as server:
        response = await ask(transport, server.url())
        assert response.status_code == 200
        assert await read(response) == b"hello"


@pytest.mark.parametrize("raw", CUT_SHORT.values(), ids=CUT_SHORT)
async def test_body_is_truncated_when_its_framing_is_left_open(
    transport: PooledTransport, raw: bytes
) -> None:
    async with RawServer(saying(raw)) as server:
        response = await ask(transport, server.url())
        content = bytearray()
        with pytest.raises(UpstreamTruncated):
            await read_on(body_of(response), content)
        assert content == b"hello"
        with pytest.raises(UpstreamTruncated):
            await body_of(response).receive()


@pytest.mark.parametrize("head", [CHUNKED + b"5\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_body_is_truncated_when_the_connection_is_reset(
    transport: PooledTransport, head: bytes
) -> None:
    taken = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head + b"hello")
        await taken.wait()
        await peer.reset()

    async with RawServer(script) as server:
        response = await ask(transport, server.url())
        assert await body_of(response).receive() == b"hello"
        taken.set()
        with pytest.raises(UpstreamTruncated):
            await body_of(response).receive()


@pytest.mark.parametrize("raw", NOT_HTTP.values(), ids=NOT_HTTP)
async def test_answer_is_a_protocol_error_when_its_head_cannot_be_read(
    transport: PooledTransport, raw: bytes
) -> None:
    async with RawServer(saying(raw)) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(transport, server.url())


async def test_trailers_are_bounded(transport: PooledTransport) -> None:
    endless = b"0\r\nx: " + b"a" * 1_000_000
    async with RawServer(saying(CHUNKED + b"5\r\nhello\r\n", endless)) as server:
        content = bytearray()
        with pytest.raises(UpstreamTruncated):
            await read_on(body_of(await ask(transport, server.url())), content)
        assert content == b"hello"


async def test_body_goes_on_when_framing_alone_outgrows_the_bound_on_heads(
    transport: PooledTransport,
) -> None:
    chunk = [b"1;" + b"e" * 20_000, b"\r\nx\r\n"]
    async with RawServer(saying(CHUNKED, *chunk * 5, b"0\r\n\r\n")) as server:
        assert await fetch(transport, server.url()) == b"xxxxx"


@pytest.mark.parametrize(
    ("method", "raw"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
        ("HEAD", CHUNKED),
        ("POST", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("POST", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
        ("POST", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
    ],
)
async def test_body_is_empty_when_none_is_due(
    transport: PooledTransport, method: str, raw: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(raw)
        await peer.closed()

    async with RawServer(script) as server:
        response = await ask(transport, server.url(), method=method, content=b"")
        with anyio.fail_after(1):
            assert await read(response) == b""


async def test_fields_arrive_in_order_and_trailers_do_not_join_them(
    transport: PooledTransport,
) -> None:
    raw = (
        b"HTTP/1.1 429 Slow Down\r\nX-Empty:\r\nSet-Cookie: a\r\nset-cookie: b\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\nx-late: 1\r\n\r\n"
    )
    async with RawServer(saying(raw)) as server:
        response = await ask(transport, server.url())
        await read(response)
        assert response.status_code == 429
        assert response.headers.raw == [
            (b"X-Empty", b""),
            (b"Set-Cookie", b"a"),
            (b"set-cookie", b"b"),
            (b"transfer-encoding", b"chunked"),
        ]


async def test_receive_returns_one_read_whole_and_joins_what_piled_up(
    transport: PooledTransport,
) -> None:
    more = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"1\r\na\r\n1\r\nb\r\n")
        await more.wait()
        await peer.send(b"1\r\nc\r\n")
        await anyio.sleep(0.01)
        await peer.send(b"1\r\nd\r\n0\r\n\r\n")
        await peer.closed()

    async with RawServer(script) as server:
        body = body_of(await ask(transport, server.url()))
        assert await body.receive() == b"ab"
        more.set()
        await anyio.sleep(0.05)
        assert await body.receive(1) == b"c"
        assert await body.receive() == b"d"
        with pytest.raises(anyio.EndOfStream):
            await body.receive()
        with pytest.raises(anyio.EndOfStream):
            await body.receive()


async def test_receive_is_refused_when_the_body_was_closed(
    transport: PooledTransport,
) -> None:
    async with RawServer(Peer.answer_all) as server:
        for close in ("aclose", "abort"):
            body = body_of(await ask(transport, server.url()))
            if close == "abort":
                body.abort()
            else:
                await body.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await body.receive()


async def test_receive_is_refused_when_another_task_is_in_it(
    transport: PooledTransport,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        await peer.closed()

    async with RawServer(script) as server, anyio.create_task_group() as tasks:
        body = body_of(await ask(transport, server.url()))
        tasks.start_soon(_expect_closed, body.receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await body.receive()
        await body.aclose()


async def _expect_closed(receive: Callable[[], object]) -> None:
    with pytest.raises(anyio.ClosedResourceError):
        await receive()  # type: ignore[misc]


@pytest.mark.parametrize("name", ["chat_stream", "sigterm_stream", "chat_nonstream"])
@pytest.mark.parametrize("size", [1, 2, 61, 1_000_000])
async def test_body_is_vllms_own_when_a_recorded_answer_is_split(
    transport: PooledTransport, name: str, size: int
) -> None:
    raw = (TRANSCRIPTS / f"{name}.raw").read_bytes()
    async with RawServer(saying(*cut(raw, size=size))) as server:
        content = await fetch(transport, server.url())
    assert content == (TRANSCRIPTS / f"{name}.body").read_bytes()
