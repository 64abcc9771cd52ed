"""What goes out: heads, bodies, and an answer that does not wait for them."""

import socket
from collections.abc import AsyncIterator

import anyio
import httpx
import pytest

from gateway.providers.transport import PooledTransport
from gateway.providers.transport.request import encode_head
from tests.gateway.providers.asking import ask, fetch, read
from tests.gateway.providers.raw_server import AT_ONCE, Peer, RawServer, Silent

pytestmark = pytest.mark.anyio

TOO_LARGE = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nno!"


class Echo:
    """Answers with the request's own bytes."""

    async def __call__(self, peer: Peer) -> None:
        while True:
            await peer.answer(await peer.request())


async def in_pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_request_goes_out_as_httpx_wrote_it(transport: PooledTransport) -> None:
    request = httpx.Request(
        "POST",
        "http://127.0.0.1:1/v1/a%2Fb?c=d",
        headers=[("X-One", "1"), ("x-two", "2")],
        content=b"{}",
    )
    head, chunked = encode_head(request, b"{}")
    assert head == (
        b"POST /v1/a%2Fb?c=d HTTP/1.1\r\nHost: 127.0.0.1:1\r\n"
        b"X-One: 1\r\nx-two: 2\r\nContent-Length: 2\r\n\r\n"
    )
    assert not chunked


async def test_request_gets_host_and_length_when_httpx_left_them_out() -> None:
    url = "http://a.example/"
    stream = httpx.ByteStream(b"hello")
    head, _ = encode_head(httpx.Request("POST", url, stream=stream), b"hello")
    assert head == (b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\n")
    head, _ = encode_head(httpx.Request("GET", url), b"")
    assert head == b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "a\rb", "a\0b"])
async def test_request_is_refused_when_a_field_breaks_out_of_its_line(
    transport: PooledTransport, value: str
) -> None:
    async with RawServer(Echo()) as server:
        request = httpx.Request("POST", server.url(), headers={"x": value})
        with pytest.raises(httpx.LocalProtocolError) as raised:
            await transport.handle_async_request(request)
        assert value not in str(raised.value)


async def test_request_leaves_in_one_packet(transport: PooledTransport) -> None:
    received = b""

    async def script(peer: Peer) -> None:
        nonlocal received
        received = await peer.receive()
        await peer.answer()

    async with RawServer(script) as server:
        await read(await ask(transport, server.url(), content=b"x" * 1000))
    assert received.endswith(b"\r\n\r\n" + b"x" * 1000)


async def test_large_body_arrives_whole_when_the_server_is_slow(
    transport: PooledTransport,
) -> None:
    sizes = []

    async def script(peer: Peer) -> None:
        await anyio.sleep(0.05)
        sizes.append(len((await peer.request()).partition(b"\r\n\r\n")[2]))
        await peer.answer()
        await peer.answer_all()

    async with RawServer(script) as server:
        await read(await ask(transport, server.url(), content=bytes(8_000_000)))
        await fetch(transport, server.url())
        assert sizes == [8_000_000]
        assert server.accepted == 1


async def test_streamed_body_goes_out_in_chunks(transport: PooledTransport) -> None:
    async def script(peer: Peer) -> None:
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += await peer.receive()
        await peer.answer(received)

    async with (
        RawServer(script) as server,
        httpx.AsyncClient(transport=transport) as client,
    ):
        answer = await client.post(
            server.url(), content=in_pieces(b"hello", b"", b"x" * 16)
        )
    head, _, body = answer.content.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert body == b"5\r\nhello\r\n10\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n"


async def test_streamed_body_goes_out_plain_when_its_length_is_known(
    transport: PooledTransport,
) -> None:
    async with (
        RawServer(Echo()) as server,
        httpx.AsyncClient(transport=transport) as client,
    ):
        answer = await client.post(
            server.url(),
            content=in_pieces(b"he", b"llo"),
            headers={"content-length": "5"},
        )
        assert answer.content.endswith(b"\r\n\r\nhello")


async def test_streamed_body_waits_when_the_server_does_not_read(
    transport: PooledTransport,
) -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 65536
            yield bytes(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:  # nobody accepts
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        async with httpx.AsyncClient(transport=transport) as client:
            with anyio.move_on_after(0.2):
                await client.post(url, content=endless(), timeout=None)
    assert 0 < given < 16_000_000  # the kernel's own send buffer grows to megabytes


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("resets", [False, True])
async def test_answer_is_returned_when_it_comes_before_the_request_was_sent(
    transport: PooledTransport, streamed: bool, resets: bool
) -> None:
    gone = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(TOO_LARGE)
        if resets:
            await peer.reset()
        else:
            await peer.closed()
        gone.set()

    body = bytes(30_000_000)
    content = in_pieces(*[body[:65536]] * 500) if streamed else body
    async with (
        RawServer(script) as server,
        httpx.AsyncClient(transport=transport) as client,
    ):
        with anyio.fail_after(5):
            answer = await client.post(server.url(), content=content)
        assert (answer.status_code, answer.content) == (413, b"no!")
        with anyio.fail_after(AT_ONCE):
            await gone.wait()


async def test_connection_is_closed_when_the_answer_cut_a_streamed_body_short(
    transport: PooledTransport,
) -> None:
    answered = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.answer(b"%d" % peer.number)
        answered.set()
        await peer.closed()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await answered.wait()
        await anyio.sleep(0.02)
        yield b"never sent"

    async with (
        RawServer(script) as server,
        httpx.AsyncClient(transport=transport) as client,
    ):
        assert (await client.post(server.url(), content=slow())).text == "0"
        assert (await client.post(server.url())).text == "1"


async def test_request_fails_when_the_connection_is_lost_under_a_streamed_body(
    transport: PooledTransport,
) -> None:
    lost = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.reset()
        lost.set()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await lost.wait()
        await anyio.sleep(0.02)

    async with (
        RawServer(script) as server,
        httpx.AsyncClient(transport=transport) as client,
    ):
        with pytest.raises(httpx.ReadError):
            await client.post(server.url(), content=slow())


async def test_server_sees_the_close_when_the_streamed_body_fails(
    transport: PooledTransport,
) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x"
        await anyio.sleep(0.01)
        raise ValueError

    silent = Silent()
    async with (
        RawServer(silent) as server,
        httpx.AsyncClient(transport=transport) as client,
    ):
        with pytest.raises(ValueError):  # noqa: PT011  its own
            await client.post(server.url(), content=failing())
        with anyio.fail_after(AT_ONCE):
            await silent.gone.wait()


async def test_httpx_reads_as_from_any_transport(transport: PooledTransport) -> None:
    async with (
        RawServer(Peer.answer_all) as server,
        httpx.AsyncClient(transport=transport) as client,
    ):
        assert (await client.post(server.url())).text == "0"
        async with client.stream("POST", server.url()) as response:
            assert [data async for data in response.aiter_raw()] == [b"0"]
        async with client.stream("POST", server.url()) as response:
            assert await response.aread() == b"0"
        url = server.url().replace("127.0.0.1", "localhost")
        assert (await client.get(url)).text == "1"


async def test_httpx_is_told_in_its_own_words_when_a_body_is_cut_short(
    transport: PooledTransport,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello")

    async with (
        RawServer(script) as server,
        httpx.AsyncClient(transport=transport) as client,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(server.url())


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "https://127.0.0.1/"])
async def test_request_is_refused_when_the_transport_cannot_speak_it(
    transport: PooledTransport, url: str
) -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        await ask(transport, url)
