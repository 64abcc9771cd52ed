"""One HTTP/1.1 connection: one request at a time, and the state of its answer.

Everything that moves a connection's state lives here:

======== ================================= ========
state    is left by                        for
======== ================================= ========
OPENING  connected (and TLS agreed)        IDLE
IDLE     ``send``                          WAITING
WAITING  head of the final answer          READING
READING  end of the message                COMPLETE
COMPLETE ``finish``, may be kept           IDLE
COMPLETE ``finish``, may not be kept       CLOSED
others   ``abort``, loss, bytes not due    CLOSED
======== ================================= ========

An answer that is COMPLETE stays so when the connection goes: all of it is here.

Memory: one network read takes at most ``READ_BYTES``, and above ``buffer_bytes`` there
is none, so an answer that nobody takes holds no more than the two together.

Bare futures instead of ``anyio.Event``: there is one waiter at most, it waits once per
chunk, and an event costs three times as much. Nothing here starts a task.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import NamedTuple, cast, override

import anyio
import httptools
import httpx

from gateway.providers.transport.pool import Origin

READ_BYTES = 65536
"""The most one network read takes."""

HEAD_BYTES = 65536
"""The most that may arrive on end and be neither a whole head nor body."""


class State(Enum):
    """Where a connection stands: the table at the head of this module."""

    OPENING = auto()
    IDLE = auto()
    WAITING = auto()
    READING = auto()
    COMPLETE = auto()
    CLOSED = auto()


class Head(NamedTuple):
    """A final answer's status and header fields, as they came."""

    status: int
    fields: list[tuple[bytes, bytes]]

    @property
    def frames_its_body(self) -> bool:
        """Whether the body's end can be told from the end of the connection."""
        return any(
            name == b"content-length" or value.lower().endswith(b"chunked")
            for name, value in ((name.lower(), value) for name, value in self.fields)
            if name in {b"content-length", b"transfer-encoding"}
        )


@dataclass(frozen=True, slots=True)
class Wire:
    """What the connections of one transport share.

    Attributes:
        scratch: ``READ_BYTES`` to read into. One will do: each read is parsed before
            the loop makes the next.
        buffer_bytes: Body bytes to hold before the socket is left alone.
        receive_buffer_bytes: ``SO_RCVBUF``; a busy socket's would grow to megabytes.
        keep: Takes a connection that is ready for another request.
        forget: Is told of an idle connection that ended.
    """

    scratch: memoryview
    buffer_bytes: int
    receive_buffer_bytes: int
    keep: Callable[["Connection"], None]
    forget: Callable[["Connection"], None]


class _NotDue(Exception):
    """The parser is to stop."""


class Connection(asyncio.BufferedProtocol):
    """The protocol of a plain TCP connection; ``tls`` has the encrypted one.

    Attributes:
        origin: Where it leads.
        idle_since: The pool's note.
        state: See the table.
        head: Of the current answer, once it is there and until it is taken.
        buffer: Body bytes that arrived and were not taken.
        answered: Whether any byte came since ``send``.
        keep_alive: Whether another request may follow this answer.
        error: Why it is CLOSED.
    """

    error: httpx.TransportError = httpx.ReadError("not connected")
    _transport: asyncio.Transport

    def __init__(self, wire: Wire, origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self.state = State.OPENING
        self.head: Head | None = None
        self.buffer = bytearray()
        self.answered = False
        self.keep_alive = False
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._reading = True
        self._writable = True
        self._bodiless = False
        self._frames_its_body = False
        self._fields: list[tuple[bytes, bytes]] = []
        self._overhead_bytes = 0
        # httptools looks its callbacks up once, here: body bytes need no Python frame.
        self.on_body = self.buffer.extend
        self._parser = httptools.HttpResponseParser(self)

    # What the transport asks for.

    async def opened(self) -> None:
        """Wait until a request may be sent.

        Raises:
            httpx.ConnectError: The connection ended before that.
        """
        while self.state is State.OPENING:
            await self.changed()
        if self.state is State.CLOSED:
            raise httpx.ConnectError(str(self.error)) from self.error

    def send(self, data: bytes, *, bodiless: bool) -> None:
        """Begin a request.

        Args:
            data: Its head, and what of its body is at hand.
            bodiless: Whether it asks for a head without its body (HEAD).

        Raises:
            httpx.ReadError: The connection ended while it was idle.
        """
        if self.state is not State.IDLE:
            raise self.error
        self.state = State.WAITING
        self.head = None
        self.answered = False
        self._bodiless = bodiless
        self._overhead_bytes = 0
        self.write(data)

    def write(self, data: bytes) -> None:
        """Write, or queue behind what waits to be written."""
        if not self._transport.is_closing():  # uvloop refuses writes after its end
            self._transport.write(data)

    async def drain(self) -> bool:
        """Wait until the queue is short; False when no more of the request is due.

        An answer ahead of the request's end makes the rest pointless, as a loss does.
        """
        while not self._writable and self.state is State.WAITING:
            await self.changed()
        return self.state is State.WAITING

    async def answer(self) -> Head:
        """Wait for the head of the final answer.

        Raises:
            httpx.ReadError: The connection ended before that.
            httpx.WriteError: It ended while it was written to.
            httpx.RemoteProtocolError: What came is not HTTP/1, or its head is too long.
        """
        while self.state is State.WAITING:
            await self.changed()
        head, self.head = self.head, None  # who waits for a body holds no fields
        if head is None:
            raise self.error
        return head

    async def changed(self) -> None:
        """Wait until something happened; one waiter at a time."""
        if self._waiter is not None:
            action = "waiting for"
            raise anyio.BusyResourceError(action)
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            if self._waiter is waiter:
                self._waiter = None

    def take(self, max_bytes: int) -> bytes:
        """Empty the buffer, up to a size, and let the socket be read if that helps."""
        buffer = self.buffer
        if len(buffer) <= max_bytes:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[:max_bytes])
            del buffer[:max_bytes]
        if not self._reading:
            self._read_on()
        return data

    def finish(self) -> None:
        """Be done with the answer: keep the connection only if nothing is left of it.

        A whole answer is complete on the wire, also when it was not taken out of the
        buffer; a whole request has left our own.
        """
        if (
            self.state is State.COMPLETE
            and self.keep_alive
            and not self._transport.is_closing()
            and not self._transport.get_write_buffer_size()
        ):
            self.buffer.clear()
            self._read_on()
            self.state = State.IDLE
            self._wire.keep(self)
        else:
            self.state = State.CLOSED
            self.abort()
        self._wake()

    def abort(self) -> None:
        """Close the socket at once, whatever waits to be read or written."""
        self._close(httpx.ReadError("aborted"))

    # What the event loop calls.

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # Nothing was asked yet, so nothing can have filled the larger buffer before.
        # TCP_NODELAY both loops set by themselves.
        sock: socket.socket = transport.get_extra_info("socket")
        size = self._wire.receive_buffer_bytes
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        self._ready()

    @override
    def get_buffer(self, sizehint: int) -> memoryview:
        return self._wire.scratch

    @override
    def buffer_updated(self, nbytes: int) -> None:
        self._feed(self._wire.scratch[:nbytes])

    @override
    def eof_received(self) -> None:
        self._end_input()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        kind = httpx.WriteError if isinstance(exc, BrokenPipeError) else httpx.ReadError
        self._close(kind(str(exc or "closed by the server")))

    @override
    def pause_writing(self) -> None:
        self._writable = False

    @override
    def resume_writing(self) -> None:
        self._writable = True
        self._wake()

    # What httptools calls; what is raised here ends the parse.

    def on_message_begin(self) -> None:
        """Take note of a status line."""
        if self.state is not State.WAITING:
            raise _NotDue
        self._fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take note of a field of the head, or of a trailer, which is not used."""
        self._fields.append((name, value.rstrip(b" \t")))  # RFC 9112, 5: no part of it

    def on_headers_complete(self) -> None:
        """Publish the head, unless it is an interim one (100, 103)."""
        status = self._parser.get_status_code()
        if status < HTTPStatus.OK:
            return
        fields, self._fields = self._fields, []
        if sum(len(name) + len(value) for name, value in fields) > HEAD_BYTES:
            raise _NotDue
        self.head = Head(status, fields)
        self._frames_its_body = self.head.frames_its_body
        self.keep_alive = self._parser.should_keep_alive()
        self.state = State.READING
        if self._bodiless:
            self.state = State.COMPLETE
            raise _NotDue  # the parser would wait for a body

    def on_message_complete(self) -> None:
        """End the answer; an interim one is none."""
        if self.state is State.READING:
            self.state = State.COMPLETE

    # Transitions.

    def _ready(self) -> None:
        self.state = State.IDLE

    def _feed(self, data: bytes | memoryview) -> None:
        state, held = self.state, len(self.buffer)
        if state is not State.WAITING and state is not State.READING:
            self._close(httpx.RemoteProtocolError("bytes nobody asked for"))
            return
        self.answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._close(httpx.RemoteProtocolError(str(error)))
        if len(self.buffer) == held and self.state is state:
            self._overhead_bytes += len(data)
        else:
            self._overhead_bytes = 0
        if self._overhead_bytes > HEAD_BYTES:
            self._close(httpx.RemoteProtocolError("head or trailers too long"))
        if self._reading and len(self.buffer) > self._wire.buffer_bytes:
            self._reading = False
            self._transport.pause_reading()
        self._wake()

    def _read_on(self) -> None:
        if not self._reading and len(self.buffer) <= self._wire.buffer_bytes // 2:
            self._reading = True
            self._transport.resume_reading()

    def _end_input(self) -> None:
        if self.state is State.READING and not self._frames_its_body:
            self.state = State.COMPLETE
        self._close(httpx.ReadError("closed by the server"))

    def _close(self, error: httpx.TransportError) -> None:
        idle = self.state is State.IDLE
        if self.state is not State.COMPLETE and self.state is not State.CLOSED:
            self.state = State.CLOSED
            self.error = error
        self._transport.abort()
        if idle:
            self._wire.forget(self)
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
