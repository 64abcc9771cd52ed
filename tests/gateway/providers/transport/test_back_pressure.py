"""A body nobody reads: how much arrives, how much is held, and that none is lost."""

import socket

import anyio
import pytest

from gateway.providers.transport import PooledTransport
from gateway.providers.transport.connection import READ_BYTES
from tests.gateway.providers.asking import ask, body_of, connection_of, read
from tests.gateway.providers.raw_server import (
    PIECE,
    TOTAL,
    Peer,
    Pusher,
    RawServer,
    Script,
)

pytestmark = pytest.mark.anyio

KERNEL_BYTES = 1 << 19
"""Most that both sockets together may hold, once the sender's is bounded too."""


async def test_server_is_stopped_when_nobody_reads(transport: PooledTransport) -> None:
    pusher = Pusher()
    async with RawServer(pusher) as server:
        body = body_of(await ask(transport, server.url()))
        await pusher.stuck()
        held = len(connection_of(body).buffer)
        assert 65536 < held <= 65536 + READ_BYTES
        assert pusher.sent <= held + KERNEL_BYTES
        await body.aclose()


async def test_server_goes_on_when_the_buffer_is_drained(
    transport: PooledTransport,
) -> None:
    pusher = Pusher()
    async with RawServer(pusher) as server:
        body = body_of(await ask(transport, server.url()))
        await pusher.stuck()
        received = bytearray()
        with anyio.fail_after(20):
            while len(received) < TOTAL:
                data = await body.receive()
                assert 0 < len(data) <= 65536
                received += data
        assert received == (PIECE * (TOTAL // len(PIECE) + 1))[:TOTAL]
        with pytest.raises(anyio.EndOfStream):
            await body.receive()


async def test_buffer_is_small_when_it_is_asked_to_be() -> None:
    pusher = Pusher()
    async with (
        PooledTransport(buffer_bytes=1000) as transport,
        RawServer(pusher) as server,
    ):
        body = body_of(await ask(transport, server.url()))
        await pusher.stuck()
        assert len(connection_of(body).buffer) <= 1000 + READ_BYTES
        await body.aclose()


def in_two_byte_chunks(count: int) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await peer.send(b"2\r\nab\r\n" * count + b"0\r\n\r\n")
        await peer.closed()

    return script


async def test_buffer_holds_bytes_and_not_pieces_when_chunks_are_tiny(
    transport: PooledTransport,
) -> None:
    async with RawServer(in_two_byte_chunks(30_000)) as server:
        response = await ask(transport, server.url())
        await anyio.sleep(0.1)
        buffer = connection_of(body_of(response)).buffer
        assert buffer.__sizeof__() < 2 * len(buffer) + 64
        assert await read(response) == b"ab" * 30_000


async def test_whole_body_is_read_when_the_server_closed_while_it_was_left_alone(
    transport: PooledTransport,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"x" * 200_000)

    async with RawServer(script) as server:
        response = await ask(transport, server.url())
        await anyio.sleep(0.1)
        assert await read(response) == b"x" * 200_000


async def test_sockets_are_set_when_they_connect() -> None:
    async with (
        PooledTransport(receive_buffer_bytes=20_000) as transport,
        RawServer(Peer.answer_all) as server,
    ):
        body = body_of(await ask(transport, server.url()))
        sock = connection_of(body)._transport.get_extra_info("socket")
        size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert size == 40_000  # Linux doubles it for its own bookkeeping
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await body.aclose()
