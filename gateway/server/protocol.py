"""uvicorn's HTTP protocol, with bounds on a request: its head, its framing, its time.

============================ ======================================================
a request                    is answered
============================ ======================================================
whose head is over 64 KiB    431, before it is all there
that is no HTTP, is framed   400
twice (length and chunks),
names no host, or two
whose head takes over 10 s   408; closed without a word when nothing came at all
whose body takes 30 s more   408, or cut when it has been answered already
that comes before the answer not: the connection closes after that answer
to the one before it
on a surplus connection      503; a probe of the gateway's health as ever
============================ ======================================================

A connection is surplus when as many clients are connected as may be, and none of them
is idle; else the idle one makes room.

After a refusal what still comes is read and thrown away for a moment: a socket closed
with unread bytes is reset, and the client would never see why. A request that comes
too early is not kept, since keeping it would mean not to read on, and who does not read
does not see his client leave.

The end of an answer that nobody reads is kept until the connection has been idle for
``timeout_keep_alive`` twice without any progress.
"""

import asyncio
import secrets
from typing import Any, override

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.api.edge import MAX_HEADER_BYTES
from gateway.api.error_response import error_body, error_headers
from gateway.errors import HeadersTooLarge, InvalidRequest, Overloaded, RequestTimeout
from streaming.errors import Fault

HEAD_SECONDS = 10.0
SURPLUS_SECONDS = 1.0
"""How long a surplus connection may take to say what it wants."""
BODY_SECONDS = 30.0
LINGER_SECONDS = 1.0
WRITE_BUFFER_BYTES = 32_768
"""Of a response, in this process, before its writer waits."""

_PROBES = {b"/healthz", b"/readyz", b"/metrics"}
_ONCE = {b"host", b"content-length", b"transfer-encoding"}


class _TooEarly(Exception):
    """A request begins before the one before it has been answered."""


class _Surplus(Exception):
    """A request for which there is no room."""


class Connection(HttpToolsProtocol):
    """One connection of a client.

    Args:
        most: Connections there may be, this one included.
        given: What uvicorn gives its protocols.
    """

    # uvicorn's own attributes just fit into the object: more make a dict of 1.5 kB.
    __slots__ = (
        "_deadline",
        "_head_bytes",
        "_in_body",
        "_in_head",
        "_is_surplus",
        "_most",
        "_refused",
        "_unsent_bytes",
    )

    def __init__(self, most: int, **given: Any) -> None:
        super().__init__(**given)
        self._most = most
        self._is_surplus = False
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True  # since the connection was made, or a request began
        self._in_body = False
        self._refused = False
        self._unsent_bytes = 0  # when the connection was last found to be idle

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        self._expect_within(HEAD_SECONDS)
        if len(self.connections) > self._most and not self._make_room():
            self._is_surplus = True
            self._expect_within(SURPLUS_SECONDS)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    @override
    def eof_received(self) -> None:
        """A half-close is leaving, unless all of the answer has been written.

        Left to itself, the transport would first flush what was written: a client that
        does not read would never have left.
        """
        if self._is_answering:
            self.transport.abort()

    @override
    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # answered as if it had not been asked for
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _TooEarly):
                self._refused = True
                self.cycle.keep_alive = False
            elif isinstance(error.__context__, _Surplus):
                self._refuse(Overloaded(retry_after_seconds=1.0))
            else:
                self._refuse(InvalidRequest("The request is not valid HTTP/1.1."))
            return
        self._watch(len(data))

    @override
    def on_message_begin(self) -> None:
        if self._is_answering:
            raise _TooEarly
        super().on_message_begin()
        self._in_head, self._in_body, self._head_bytes = True, False, 0

    @override
    def on_headers_complete(self) -> None:
        _check(self.headers, self.parser.get_http_version())
        if self._is_surplus and self.url.partition(b"?")[0] not in _PROBES:
            raise _Surplus
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        if self._is_surplus:
            self.cycle.keep_alive = False

    @override
    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body = False

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # as soon as all has been written, if ever
            self._look_again()

    @override
    def timeout_keep_alive_handler(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent != self._unsent_bytes:
            self._unsent_bytes = unsent
            self._look_again()
        elif unsent:
            self.transport.abort()
        else:
            self.transport.close()

    def _look_again(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _make_room(self) -> bool:
        """Close a connection that has been answered and asks for nothing."""
        for other in self.connections:
            if isinstance(other, Connection) and other.is_idle:
                other.transport.close()
                return True
        return False

    @property
    def is_idle(self) -> bool:
        """Whether it has been answered, and asks for nothing."""
        is_open = not self._refused and not self.transport.is_closing()
        return is_open and self._deadline is None and not self._is_answering

    @property
    def _is_answering(self) -> bool:
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete  # type: ignore[redundant-expr] # None before the first request

    def _watch(self, received: int) -> None:
        """See whether the request is whole, and start or stop the clock."""
        if self._in_head:
            self._head_bytes += received
            if self._head_bytes > MAX_HEADER_BYTES:
                self._refuse(HeadersTooLarge())
            elif self._deadline is None:
                self._expect_within(HEAD_SECONDS)
        elif self._in_body:
            if self._head_bytes >= 0:  # its head has just been completed
                self._head_bytes = -1
                self._expect_within(BODY_SECONDS)
        else:
            self._stop_clock()

    def _expect_within(self, seconds: float) -> None:
        self._stop_clock()
        self._deadline = self.loop.call_later(seconds, self._time_out)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        self._deadline = None
        if self._in_head and self._head_bytes == 0:
            self.transport.close()
        else:
            self._refuse(RequestTimeout())

    def _refuse(self, fault: Fault) -> None:
        """Answer and leave; nothing of this connection is served any more."""
        self._refused = True
        self._stop_clock()
        if self._is_answering:
            if self.cycle.response_started or not self._in_body:
                self.transport.abort()  # an answer is under way: it cannot be ended
                return
            self.cycle.disconnected = True  # whoever reads the body is told so
            self.cycle.message_event.set()
        self.transport.write(_answer(fault))
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)


def _check(headers: list[tuple[bytes, bytes]], version: str) -> None:
    """Refuse what two parsers could read differently (RFC 9112, 3.2 and 6.1).

    Raises:
        ValueError: The parser takes it for its own error.
    """
    named = [name for name, _ in headers if name in _ONCE]
    repeated = len(named) != len(set(named))
    twice_framed = {b"content-length", b"transfer-encoding"} <= set(named)
    homeless = version == "1.1" and b"host" not in named
    if repeated or twice_framed or homeless:
        raise ValueError


def _answer(fault: Fault) -> bytes:
    body = error_body(fault)
    fields = "".join(
        f"{name}: {value}\r\n" for name, value in error_headers(fault).items()
    )
    return b"".join((
        STATUS_LINE[fault.status],
        fields.encode("ascii"),
        b"connection: close\r\n",
        b"x-request-id: %b\r\n" % secrets.token_hex(16).encode("ascii"),
        b"content-length: %d\r\n\r\n" % len(body),
        body,
    ))
