"""A server over real TCP that says exactly the bytes it is told to say."""

import re
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import ByteStream, Listener, SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

AT_ONCE = 0.5
"""Seconds; 100 ms is promised, and the rest is for a machine that is busy."""

TOTAL = 50_000_000
PIECE = bytes(range(256)) * 16

type Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One accepted connection.

    Attributes:
        number: From 0, in the order of accepting.
    """

    def __init__(self, stream: ByteStream, number: int) -> None:
        self.number = number
        self._stream = stream
        self._received = b""

    async def request(self) -> bytes:
        """Read one request, head and body, as it came."""
        while b"\r\n\r\n" not in self._received:
            self._received += await self._stream.receive()
        head, _, rest = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        size = int(length[1]) if length else 0
        while len(rest) < size:
            rest += await self._stream.receive()
        self._received = rest[size:]
        return head + b"\r\n\r\n" + rest[:size]

    async def receive(self) -> bytes:
        return await self._stream.receive()

    async def send(self, data: bytes) -> None:
        await self._stream.send(data)

    async def answer(self, body: bytes = b"ok") -> None:
        """Answer whatever was asked, and stay."""
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
        await self.send(head + body)

    async def answer_all(self) -> None:
        """Answer every request with the connection's number, until it closes."""
        while True:
            await self.request()
            await self.answer(b"%d" % self.number)

    async def closed(self) -> None:
        """Wait until the other side is gone."""
        try:
            while True:
                await self._stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return

    def bound_send_buffer(self, size: int) -> None:
        """Keep the kernel from taking megabytes on this side's behalf."""
        raw = self._stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    async def say_farewell(self) -> None:
        """Send TLS's close_notify, and do not wait for the other side's."""
        assert isinstance(self._stream, TLSStream)
        with suppress(ssl.SSLWantReadError):
            self._stream._ssl_object.unwrap()
        await self.send_raw(self._stream._write_bio.read())

    async def send_raw(self, data: bytes) -> None:
        """Send beneath TLS."""
        assert isinstance(self._stream, TLSStream)
        await self._stream.transport_stream.send(data)

    async def close(self) -> None:
        """Close at once."""
        await anyio.aclose_forcefully(self._stream)

    async def reset(self) -> None:
        """Close with a RST."""
        raw = self._stream.extra(SocketAttribute.raw_socket)
        linger = struct.pack("ii", 1, 0)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await self._stream.aclose()


class RawServer:
    """Runs a script on each connection; it is closed when the script ends.

    Attributes:
        port: On 127.0.0.1.
        accepted: Connections so far.
    """

    port: int

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.accepted = 0
        self._script = script
        self._tls = tls
        self._tasks = anyio.create_task_group()

    def url(self, path: str = "/") -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    async def __aenter__(self) -> Self:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = listener.extra(SocketAttribute.local_port)
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._serve, listener)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(exc_type, exc, traceback)

    async def _serve(self, listener: Listener[SocketStream]) -> None:
        async with listener:
            await listener.serve(self._accept)

    async def _accept(self, stream: SocketStream) -> None:
        number, self.accepted = self.accepted, self.accepted + 1
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await self._script(Peer(await self._secure(stream), number))

    async def _secure(self, stream: SocketStream) -> ByteStream:
        if self._tls is None:
            return stream
        return await TLSStream.wrap(
            stream,
            server_side=True,
            ssl_context=self._tls,
            standard_compatible=False,
        )


class Silent:
    """Sends these bytes after a request, and notes when the client is gone."""

    def __init__(self, data: bytes = b"") -> None:
        self.asked = anyio.Event()
        self.gone = anyio.Event()
        self._data = data

    async def __call__(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(self._data)
        self.asked.set()
        await peer.closed()
        self.gone.set()


class Pusher:
    """Sends ``TOTAL`` bytes of body as fast as they are taken."""

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, peer: Peer) -> None:
        peer.bound_send_buffer(65536)
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % TOTAL)
        while self.sent < TOTAL:
            piece = PIECE[: TOTAL - self.sent]
            await peer.send(piece)
            self.sent += len(piece)
        await peer.closed()

    async def stuck(self) -> None:
        """Wait until nothing moves."""
        before = -1
        while before != self.sent:
            before = self.sent
            await anyio.sleep(0.05)
