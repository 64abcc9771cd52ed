"""One provider's server over HTTP: what all adapters share."""

import errno
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib.metadata import version
from types import TracebackType
from typing import override

import httpx

from gateway.errors import ConnectTimeout, Overloaded, UpstreamLost, UpstreamUnreachable
from gateway.providers.provider import Upstream
from gateway.providers.transport import PooledTransport, ResponseBody
from streaming.errors import Fault, UpstreamFault, UpstreamInvalid, UpstreamTimeout

type Headers = Sequence[tuple[bytes, bytes]]
"""Of a request, besides those that all of them have; names in lower case."""

type Send = Callable[[], Awaitable[httpx.Response]]
"""Sends a request; returns when the head of its answer is there."""

_GET_BYTES = 65536
_USER_AGENT = f"sluice/{version('sluice-gateway')}".encode()
_STATUSES = frozenset(range(200, 300)) | frozenset(range(400, 600))

_FAULTS: tuple[tuple[type[httpx.TransportError], type[UpstreamFault]], ...] = (
    (httpx.ConnectTimeout, ConnectTimeout),
    (httpx.TimeoutException, UpstreamTimeout),
    (httpx.ConnectError, UpstreamUnreachable),
    (httpx.NetworkError, UpstreamLost),
    (httpx.TransportError, UpstreamInvalid),
)
"""What a transport's error means; the first match counts."""
_OUR_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Of this process or its host: no provider is to blame."""


class UpstreamClient:
    """Speaks to one server with one key. Nothing of a caller's header passes.

    Requests are handed to the transport as they are: an ``httpx.AsyncClient`` in
    between would add redirects, cookies and authentication, none of which may happen
    here, and costs more than the rest of the request.

    Args:
        base_url: Paths of ``open`` are below it.
        api_key: Sent as bearer token; shown nowhere.
        connect_seconds: Name look-up, connection and TLS together.
        buffer_bytes: Held for a reader that does not read; then the server waits.
        ssl_context: Default, where the URL asks for TLS: the public authorities, or
            in their place those of ``SSL_CERT_FILE`` or ``SSL_CERT_DIR``.

    Raises:
        ValueError: The key cannot be sent in a header.

    Attributes:
        transport: All requests go through it; the client closes it.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        connect_seconds: float,
        buffer_bytes: int = 65536,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._base = httpx.URL(base_url.rstrip("/") + "/")
        if ssl_context is None and self._base.scheme == "https":
            ssl_context = _tls_context()
        self.transport = PooledTransport(
            buffer_bytes=buffer_bytes, ssl_context=ssl_context
        )
        self._timeout = {"connect": connect_seconds}
        self._api_key = api_key
        self._urls: dict[str, httpx.URL] = {}
        self._common = [
            (b"host", self._base.netloc),
            (b"user-agent", _USER_AGENT),
            (b"accept-encoding", b"identity"),
            *_authorization(api_key),
        ]

    def open(
        self,
        path: str,
        body: bytes,
        request_id: str,
        *,
        stream: bool,
        on_send: Callable[[], None] | None = None,
    ) -> AbstractAsyncContextManager[Upstream]:
        """Post a JSON body, and hold the answer open for the length of the block.

        Args:
            path: Below the base URL; one of a closed list, as each is remembered.
            body: JSON.
            request_id: Sent as ``x-request-id``; ``[A-Za-z0-9._-]{1,128}``.
            stream: Whether an event stream is asked for.
            on_send: Called when the request is about to be written.

        Raises:
            UpstreamUnreachable: Refused.
            UpstreamLost: The connection ended before the answer's head was there.
            ConnectTimeout: The connection was not made in time.
            UpstreamInvalid: The answer is not HTTP, compressed, or a redirect.
        """
        headers = (
            (b"accept", b"text/event-stream" if stream else b"application/json"),
            (b"content-type", b"application/json"),
            (b"x-request-id", request_id.encode("ascii")),
        )
        return HeldAnswer(partial(self.post, path, headers, body, on_send))

    async def post(
        self,
        path: str,
        headers: Headers,
        body: bytes,
        on_send: Callable[[], None] | None,
    ) -> httpx.Response:
        """Send a body; return when the head of its answer is there.

        Raises:
            httpx.TransportError: As ``PooledTransport`` does.
        """
        request = self.request("POST", path, headers, body, on_send)
        return await self.transport.handle_async_request(request)

    def request(
        self,
        method: str,
        path: str,
        headers: Headers = (),
        body: bytes = b"",
        on_send: Callable[[], None] | None = None,
    ) -> httpx.Request:
        """A request with these headers, and those that all of them have.

        Args:
            method: In capitals.
            path: A URL, or relative to the base URL; one of a closed list, as each is
                remembered.
            headers: Names in lower case.
            body: May be empty.
            on_send: Called when it is about to be written.
        """
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = self._base.join(path)
        return httpx.Request(
            method,
            url,
            headers=[*self._common, *headers],
            stream=httpx.ByteStream(body),
            extensions={"timeout": self._timeout, "on_send": on_send},
        )

    def redact(self, text: str) -> str:
        """The text without this server's key."""
        return text.replace(self._api_key, "***") if self._api_key else text

    async def get(self, path: str) -> tuple[int, bytes]:
        """Fetch what is at a path of the server: its status, and 64 KiB at most.

        Args:
            path: From the server's root, not from the base URL.

        Raises:
            UpstreamFault: As ``open`` does, or ``UpstreamTruncated``.
        """
        request = self.request("GET", "/" + path.lstrip("/"))
        content = bytearray()
        send = partial(self.transport.handle_async_request, request)
        async with HeldAnswer(send) as upstream:
            async for data in upstream.body:
                content += data
                if len(content) >= _GET_BYTES:
                    break
        return upstream.status, bytes(content[:_GET_BYTES])

    async def aclose(self) -> None:
        """Close the idle connections."""
        await self.transport.aclose()


class HeldAnswer(AbstractAsyncContextManager[Upstream]):
    """A request, sent on entry; its answer, closed on exit.

    Args:
        send: Sends it, through a ``PooledTransport``.
    """

    _body: ResponseBody

    def __init__(self, send: Send) -> None:
        self._send = send

    @override
    async def __aenter__(self) -> Upstream:
        send = self._send
        del self._send  # with the request's body
        try:
            response = await send()
        except httpx.TransportError as error:
            raise _fault_of(error) from error
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in response.headers.raw
        }
        self._body = response.extensions["body"]
        if not _is_acceptable(response.status_code, headers):
            self._body.abort()
            raise UpstreamInvalid
        attempts = response.request.extensions["attempts"]
        return Upstream(
            response.status_code, headers, self._body, attempts, self._body.is_whole
        )

    @override
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._body.aclose()  # never waits: no shield is needed


def _authorization(api_key: str | None) -> list[tuple[bytes, bytes]]:
    if api_key is None:
        return []
    if not (api_key.isascii() and api_key.isprintable()):
        message = "the provider's API key is not printable ASCII"
        raise ValueError(message)
    return [(b"authorization", b"Bearer " + api_key.encode("ascii"))]


def _tls_context() -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _is_acceptable(status: int, headers: Mapping[str, str]) -> bool:
    """Whether the answer is one to relay: no redirect, no compression."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    return status in _STATUSES and encoding in {"identity", ""}


def _fault_of(error: httpx.TransportError) -> Fault:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in _OUR_LIMITS:
        return Overloaded(retry_after_seconds=1.0)
    return next(fault() for kind, fault in _FAULTS if isinstance(error, kind))
