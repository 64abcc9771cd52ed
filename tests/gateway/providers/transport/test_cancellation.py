"""Leaving at every await: the socket is closed at once, and nothing is lost or kept."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import anyio
import anyio.to_thread
import httpx
import pytest

from gateway.providers.transport import PooledTransport
from tests.gateway.providers.asking import ask, body_of, fetch
from tests.gateway.providers.raw_server import AT_ONCE, Peer, RawServer, Silent

pytestmark = pytest.mark.anyio

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def open_sockets() -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            count += str(link.readlink()).startswith("socket:")
    return count


async def open_sockets_become(count: int) -> None:
    """Closing takes a turn or two of the loop, on each side."""
    for _ in range(int(AT_ONCE / 0.005)):
        if open_sockets() == count:
            return
        await anyio.sleep(0.005)
    assert open_sockets() == count


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A server whose backlog is full: connections to it neither succeed nor fail."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as last:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, last):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


async def test_connection_is_refused_when_nobody_listens(
    transport: PooledTransport,
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(httpx.ConnectError):
            await ask(transport, f"http://127.0.0.1:{unused.getsockname()[1]}/")


async def test_connection_is_refused_when_the_name_is_unknown(
    transport: PooledTransport,
) -> None:
    with pytest.raises(httpx.ConnectError):
        await ask(transport, "http://nowhere.invalid/")


async def test_connecting_ends_when_its_time_is_up(
    transport: PooledTransport, black_hole: str
) -> None:
    sockets = open_sockets()
    with anyio.fail_after(1), pytest.raises(httpx.ConnectTimeout):
        await ask(transport, black_hole, connect=0.05)
    await open_sockets_become(sockets)


async def test_socket_is_closed_when_connecting_is_cancelled(
    transport: PooledTransport, black_hole: str
) -> None:
    sockets = open_sockets()
    with anyio.move_on_after(0.05):
        await ask(transport, black_hole, connect=None)
    await open_sockets_become(sockets)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 2"])
async def test_server_sees_the_close_when_waiting_for_the_head_is_cancelled(
    transport: PooledTransport, data: bytes
) -> None:
    silent = Silent(data)
    async with RawServer(silent) as server:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, transport, server.url())
            await silent.asked.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(AT_ONCE):
            await silent.gone.wait()


async def test_server_sees_the_close_when_no_head_comes_in_time(
    transport: PooledTransport,
) -> None:
    silent = Silent()
    async with RawServer(silent) as server:
        with pytest.raises(httpx.ReadTimeout):
            await ask(transport, server.url(), read=0.05)
        with anyio.fail_after(AT_ONCE):
            await silent.gone.wait()


async def test_server_sees_the_close_when_a_cancelled_reader_leaves(
    transport: PooledTransport,
) -> None:
    silent = Silent(CHUNKED)
    async with RawServer(silent) as server:
        with anyio.move_on_after(0.02):
            response = await ask(transport, server.url())
            try:
                await body_of(response).receive()
            finally:
                await response.aclose()
        with anyio.fail_after(AT_ONCE):
            await silent.gone.wait()


async def test_server_sees_the_close_when_the_reader_of_a_full_buffer_leaves(
    transport: PooledTransport,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await peer.send(b"x" * 65536)

    async with RawServer(script) as server:
        response = await ask(transport, server.url())
        await anyio.sleep(0.05)
        sockets = open_sockets()
        await response.aclose()
        await open_sockets_become(sockets - 2)  # the server's end is closed too


async def test_nothing_is_lost_when_a_receive_is_cancelled(
    transport: PooledTransport,
) -> None:
    more = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"1\r\na\r\n")
        await more.wait()
        await peer.send(b"1\r\nb\r\n0\r\n\r\n")
        await peer.answer_all()

    async with RawServer(script) as server:
        body = body_of(await ask(transport, server.url()))
        assert await body.receive() == b"a"
        for _ in range(3):
            with anyio.move_on_after(0.01) as scope:
                await body.receive()
            assert scope.cancelled_caught
        more.set()
        assert await body.receive() == b"b"
        with pytest.raises(anyio.EndOfStream):
            await body.receive()
        assert await fetch(transport, server.url()) == b"0"


async def test_nothing_is_lost_when_data_and_cancellation_come_together(
    transport: PooledTransport,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for number in range(200):
            await peer.send(b"4\r\n%04d\r\n" % number)
            await anyio.sleep(0.0005)
        await peer.send(b"0\r\n\r\n")
        await peer.closed()

    async with RawServer(script) as server:
        body = body_of(await ask(transport, server.url()))
        received = b""
        ended = False
        with anyio.fail_after(10):
            while not ended:
                with anyio.move_on_after(0.0005):
                    try:
                        received += await body.receive()
                    except anyio.EndOfStream:
                        ended = True
        assert received == b"".join(b"%04d" % number for number in range(200))


def push_without_end(listener: socket.socket) -> None:
    """From a thread, so that the reader's loop never runs out of bytes."""
    connection, _ = listener.accept()
    with connection, suppress(OSError):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)


async def test_receive_is_cancelled_when_the_stream_never_pauses(
    transport: PooledTransport,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=push_without_end, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        body = body_of(await ask(transport, url))
        with anyio.fail_after(5), anyio.move_on_after(0.1) as scope:
            while True:
                await body.receive(1000)
        assert scope.cancelled_caught
        await body.aclose()
        await anyio.to_thread.run_sync(thread.join)


async def test_no_socket_is_left_open_when_many_requests_are_cancelled(
    transport: PooledTransport,
) -> None:
    async with RawServer(Peer.closed) as server:
        sockets = open_sockets()
        for delay in range(20):
            with anyio.move_on_after(delay / 5000):
                async with anyio.create_task_group() as tasks:
                    for _ in range(10):
                        tasks.start_soon(ask, transport, server.url())
        await open_sockets_become(sockets)
