"""What httpx calls: find or make a connection, ask, repeat once if it was stale."""

import asyncio
import ssl
from collections.abc import Callable
from functools import partial
from typing import cast, override

import anyio
import httpx

from gateway.providers.transport.body import ResponseBody, ResponseStream
from gateway.providers.transport.connection import (
    READ_BYTES,
    Connection,
    Head,
    Wire,
)
from gateway.providers.transport.pool import Origin, Pool
from gateway.providers.transport.request import chunk, encode_head
from gateway.providers.transport.tls import TlsConnection

_PORTS = {"http": 80, "https": 443}
_STALE = (httpx.ReadError, httpx.WriteError)


class PooledTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 over asyncio protocols, for one event loop.

    Any number of connections may be in use: who asks is limited elsewhere. Of the
    timeouts of a request, ``connect`` is kept (name look-up and TLS included) and
    ``read``, until the answer's head; what follows is timed by whoever reads.

    A response carries its ``ResponseBody`` in ``extensions["body"]``. A request carries
    the number of times it was written in ``extensions["attempts"]``, also when it
    failed: a reset of a reused connection before any byte of an answer is no answer,
    and the request is repeated, once, on a fresh connection.

    Args:
        buffer_bytes: Held for a reader that does not read; then its socket waits.
        receive_buffer_bytes: ``SO_RCVBUF`` of each connection.
        keepalive_expiry: Seconds a connection may be idle: less than a server's own
            limit, which is 5 for vLLM and llama.cpp.
        max_idle: Idle connections over all origins.
        ssl_context: None where no ``https`` is spoken.
    """

    def __init__(
        self,
        *,
        buffer_bytes: int = 65536,
        receive_buffer_bytes: int = 65536,
        keepalive_expiry: float = 4.0,
        max_idle: int = 1024,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._ssl_context = ssl_context
        self._keepalive_expiry = keepalive_expiry
        self._pool = Pool[Connection](expiry=keepalive_expiry, limit=max_idle)
        self._sweeping = False
        self._wire = Wire(
            scratch=memoryview(bytearray(READ_BYTES)),
            buffer_bytes=buffer_bytes,
            receive_buffer_bytes=receive_buffer_bytes,
            keep=self._keep,
            forget=self._pool.forget,
        )

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and wait for the head of its answer.

        The extension ``on_send`` is called when the request is about to be written.

        Raises:
            httpx.ConnectTimeout: The connection was not made in time.
            httpx.ConnectError: It was refused, the name is unknown, TLS failed.
            httpx.ReadTimeout: No head came in time.
            httpx.ReadError: The connection ended before the head.
            httpx.WriteError: It ended while it was written to.
            httpx.RemoteProtocolError: The head is no HTTP/1, or over 64 KiB long.
            httpx.LocalProtocolError: The request's header cannot be sent.
            httpx.UnsupportedProtocol: The URL is neither http nor https.
        """
        origin = _origin_of(request.url)
        now = asyncio.get_running_loop().time()
        request.extensions["attempts"] = 1
        connection = self._pool.take(origin, now)
        if connection is not None:
            try:
                return await _ask(connection, request)
            except _STALE:
                repeatable = isinstance(request.stream, httpx.ByteStream)
                if connection.answered or not repeatable:
                    raise
                request.extensions["attempts"] = 2
        return await _ask(await self._connect(origin, request), request)

    @override
    async def aclose(self) -> None:
        """Close the idle connections; each of the others closes with its answer."""
        self._pool.close()

    async def _connect(self, origin: Origin, request: httpx.Request) -> Connection:
        loop = asyncio.get_running_loop()
        make = self._maker(origin)
        try:
            with anyio.fail_after(_timeout(request, "connect")):
                _, connection = await loop.create_connection(
                    make, origin.host, origin.port
                )
                try:
                    await connection.opened()
                except BaseException:
                    connection.abort()
                    raise
        except TimeoutError as error:
            message = "no connection in time"
            raise httpx.ConnectTimeout(message) from error
        except OSError as error:
            message = "no connection"
            raise httpx.ConnectError(message) from error
        return connection

    def _maker(self, origin: Origin) -> Callable[[], Connection]:
        if origin.scheme == "http":
            return partial(Connection, self._wire, origin)
        if self._ssl_context is None:
            message = "this transport has no TLS context"
            raise httpx.UnsupportedProtocol(message)
        return partial(TlsConnection, self._wire, origin, self._ssl_context)

    def _keep(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._pool.put(connection, loop.time())
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(self._keepalive_expiry, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._pool.expire(loop.time())
        self._sweeping = len(self._pool) > 0
        if self._sweeping:
            loop.call_later(self._keepalive_expiry, self._sweep)


async def _ask(connection: Connection, request: httpx.Request) -> httpx.Response:
    """Send on this connection; whatever goes wrong, it is closed then."""
    try:
        if (on_send := request.extensions.get("on_send")) is not None:
            on_send()
        await _send(connection, request)
        head = await _answer(connection, _timeout(request, "read"))
    except BaseException:
        connection.abort()
        raise
    body = ResponseBody(connection)
    return httpx.Response(
        head.status,
        headers=head.fields,
        stream=ResponseStream(body),
        request=request,
        extensions={"body": body},
    )


async def _send(connection: Connection, request: httpx.Request) -> None:
    """Write the request; a body that is at hand goes in one piece with the head."""
    stream = request.stream
    bodiless = request.method == "HEAD"
    if isinstance(stream, httpx.ByteStream):
        body = b"".join(stream)
        head, chunked = encode_head(request, body)
        if chunked:
            body = chunk(body) + chunk(b"") if body else chunk(b"")
        connection.send(head + body, bodiless=bodiless)
        return
    head, chunked = encode_head(request, None)
    connection.send(head, bodiless=bodiless)
    async for piece in cast("httpx.AsyncByteStream", stream):
        if not await connection.drain():
            connection.keep_alive = False  # the server never saw the request's end
            return
        if piece:
            connection.write(chunk(piece) if chunked else piece)
    if chunked:
        connection.write(chunk(b""))


async def _answer(connection: Connection, seconds: float | None) -> Head:
    if seconds is None:  # a cancel scope costs more than all the rest
        return await connection.answer()
    try:
        with anyio.fail_after(seconds):
            return await connection.answer()
    except TimeoutError as error:
        message = "no answer in time"
        raise httpx.ReadTimeout(message) from error


def _timeout(request: httpx.Request, phase: str) -> float | None:
    seconds: float | None = request.extensions.get("timeout", {}).get(phase)
    return seconds


def _origin_of(url: httpx.URL) -> Origin:
    if url.scheme not in _PORTS:
        message = "the URL is neither http nor https"
        raise httpx.UnsupportedProtocol(message)
    port = url.port or _PORTS[url.scheme]
    return Origin(url.scheme, url.raw_host.decode("ascii"), port)
