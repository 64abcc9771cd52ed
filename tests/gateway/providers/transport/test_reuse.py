"""Which connection carries the next request, and which never carries one again."""

from collections.abc import AsyncIterator

import anyio
import httpx
import pytest

from gateway.providers.transport import PooledTransport
from tests.gateway.providers.asking import ask, attempts_of, body_of, fetch, read
from tests.gateway.providers.raw_server import AT_ONCE, Peer, RawServer, Script

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def answering(first: bytes) -> Script:
    """Say these bytes on the first connection; then answer all, by number."""

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.send(first)
        else:
            await peer.answer(b"%d" % peer.number)
        await peer.answer_all()

    return script


async def settle() -> None:
    """Let what is on the wire arrive, on loopback and on this loop."""
    await anyio.sleep(0.02)


async def test_connection_used_last_is_used_first(transport: PooledTransport) -> None:
    async with RawServer(Peer.answer_all) as server:
        responses = [await ask(transport, server.url()) for _ in range(3)]
        for number in (1, 0, 2):
            assert await read(responses[number]) == b"%d" % number
        again = [await ask(transport, server.url()) for _ in range(4)]
        assert [await read(response) for response in again] == [b"2", b"0", b"1", b"3"]


@pytest.mark.parametrize(
    "raw",
    [
        OK,
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    ],
)
async def test_connection_is_reused_when_its_answer_was_read_to_its_end(
    transport: PooledTransport, raw: bytes
) -> None:
    async with RawServer(answering(raw)) as server:
        await fetch(transport, server.url())
        assert await fetch(transport, server.url()) == b"0"


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        OK + b"junk",
    ],
    ids=["close", "HTTP/1.0", "second answer", "junk"],
)
async def test_connection_is_closed_when_its_answer_leaves_it_unfit(
    transport: PooledTransport, raw: bytes
) -> None:
    async with RawServer(answering(raw)) as server:
        assert await fetch(transport, server.url()) in {b"", b"ok"}
        assert await fetch(transport, server.url()) == b"1"


async def test_connection_is_closed_when_a_head_alone_was_asked_for(
    transport: PooledTransport,
) -> None:
    script = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
    async with RawServer(script) as server:
        await read(await ask(transport, server.url(), method="HEAD", content=b""))
        assert await fetch(transport, server.url()) == b"1"


@pytest.mark.parametrize("close", ["aclose", "abort"])
async def test_connection_is_closed_when_its_answer_is_left_unread(
    transport: PooledTransport, close: str
) -> None:
    gone = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        await peer.closed()
        gone.set()

    async with RawServer(script) as server:
        body = body_of(await ask(transport, server.url()))
        if close == "abort":
            body.abort()
        else:
            await body.aclose()
        with anyio.fail_after(AT_ONCE):
            await gone.wait()


async def test_connection_is_reused_when_its_whole_answer_was_not_taken(
    transport: PooledTransport,
) -> None:
    async with RawServer(Peer.answer_all) as server:
        await body_of(await ask(transport, server.url())).aclose()
        assert await fetch(transport, server.url()) == b"0"


async def test_connection_reads_on_when_its_answer_had_filled_the_buffer() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"x" * 1000)
        await peer.answer_all()

    async with (
        PooledTransport(buffer_bytes=10) as transport,
        RawServer(script) as server,
    ):
        response = await ask(transport, server.url())
        await settle()
        await response.aclose()
        with anyio.fail_after(1):
            assert await fetch(transport, server.url()) == b"0"


async def test_connection_is_closed_when_it_was_idle_for_too_long() -> None:
    gone = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer()
        await peer.closed()
        gone.set()

    async with (
        PooledTransport(keepalive_expiry=0.05) as transport,
        RawServer(script) as server,
    ):
        await fetch(transport, server.url())
        with anyio.fail_after(AT_ONCE):
            await gone.wait()


async def test_idle_connection_is_forgotten_when_the_server_closes_it(
    transport: PooledTransport,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"%d" % peer.number)

    async with RawServer(script) as server:
        assert await fetch(transport, server.url()) == b"0"
        await settle()
        response = await ask(transport, server.url())
        assert await read(response) == b"1"
        assert attempts_of(response) == 1


async def test_idle_connection_is_closed_when_the_server_speaks_unasked(
    transport: PooledTransport,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer()
        if peer.number == 0:
            await anyio.sleep(0.01)
            await peer.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await peer.answer_all()

    async with RawServer(script) as server:
        await fetch(transport, server.url())
        await settle()
        assert await fetch(transport, server.url()) == b"ok"
        assert server.accepted == 2


async def test_idle_connections_are_bounded() -> None:
    async with (
        PooledTransport(max_idle=1) as transport,
        RawServer(Peer.answer_all) as server,
    ):
        for response in [await ask(transport, server.url()) for _ in range(2)]:
            await read(response)
        again = [await ask(transport, server.url()) for _ in range(2)]
        assert [await read(response) for response in again] == [b"0", b"2"]


async def test_idle_connections_are_closed_with_the_transport() -> None:
    gone = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer()
        await peer.closed()
        gone.set()

    async with RawServer(script) as server:
        async with PooledTransport() as transport:
            await fetch(transport, server.url())
        with anyio.fail_after(AT_ONCE):
            await gone.wait()


def resetting_reused(*, fresh_too: bool = False, after: bytes = b"") -> Script:
    """Answer the first request of the first connections, and reset on the next."""

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number < 2 or not fresh_too:
            await peer.answer(b"%d" % peer.number)
            await peer.request()
        await peer.send(after)
        await peer.reset()

    return script


async def test_request_is_repeated_on_a_fresh_connection_when_a_reused_one_was_stale(
    transport: PooledTransport,
) -> None:
    async with RawServer(resetting_reused()) as server:
        pair = [await ask(transport, server.url()) for _ in range(2)]
        for response in pair:
            await read(response)
        response = await ask(transport, server.url())
        assert attempts_of(response) == 2
        assert await read(response) == b"2"  # neither of the two idle ones


async def test_request_fails_when_its_repetition_is_reset_too(
    transport: PooledTransport,
) -> None:
    async with RawServer(resetting_reused(fresh_too=True)) as server:
        for response in [await ask(transport, server.url()) for _ in range(2)]:
            await read(response)
        request = httpx.Request("POST", server.url(), content=b"{}")
        with pytest.raises(httpx.ReadError):
            await transport.handle_async_request(request)
        assert request.extensions["attempts"] == 2
        assert server.accepted == 3


async def test_request_is_not_repeated_when_a_byte_of_an_answer_came(
    transport: PooledTransport,
) -> None:
    async with RawServer(resetting_reused(after=b"H")) as server:
        await fetch(transport, server.url())
        with pytest.raises(httpx.ReadError):
            await ask(transport, server.url())
        assert server.accepted == 1


async def test_request_is_not_repeated_when_its_body_is_a_stream(
    transport: PooledTransport,
) -> None:
    async with (
        RawServer(resetting_reused()) as server,
        httpx.AsyncClient(transport=transport) as client,
    ):
        await fetch(transport, server.url())
        with pytest.raises(httpx.ReadError):
            await client.post(server.url(), content=_pieces())
        assert server.accepted == 1


async def _pieces() -> AsyncIterator[bytes]:
    yield b"{}"


@pytest.mark.parametrize("end", ["reset", "hang up"])
async def test_request_fails_when_a_fresh_connection_ends_without_an_answer(
    transport: PooledTransport, end: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if end == "reset":
            await peer.reset()

    async with RawServer(script) as server:
        with pytest.raises(httpx.ReadError):
            await ask(transport, server.url())
        assert server.accepted == 1
