"""The outermost layer: every answer gets its request id, no exception gets out."""

import logging
import re
import secrets
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.error_response import error_response
from gateway.errors import HeadersTooLarge
from streaming.errors import LocalFault

MAX_HEADER_BYTES = 65_536
MAX_HEADERS = 100

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_RAW_SEND = "sluice.raw_send"
_ID = "sluice.request_id"


class Edge:
    """A pure ASGI wrapper around the whole application.

    A caller's ``x-request-id`` is kept if it is one, else one is made.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope["headers"])
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"].append((b"x-request-id", request_id))
            await send(message)

        scope[_RAW_SEND] = send
        scope[_ID] = request_id.decode("ascii")
        try:
            if _too_large(scope["headers"]):
                await error_response(HeadersTooLarge())(scope, receive, send_with_id)
            else:
                await self._app(scope, receive, send_with_id)
        except Exception:
            _log.exception("request %s failed", scope[_ID])
            if started:
                raise  # the server cuts the connection: the answer is not whole
            fault = LocalFault("The gateway failed.")
            await error_response(fault)(scope, receive, send_with_id)


def raw_send_of(scope: Scope) -> Send:
    """The server's own ``send``, without what middlewares put around it."""
    return cast("Send", scope[_RAW_SEND])


def request_id_of(scope: Scope) -> str:
    """The request's id."""
    return cast("str", scope[_ID])


def _request_id(headers: list[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value
    return secrets.token_hex(16).encode("ascii")


def _too_large(headers: list[tuple[bytes, bytes]]) -> bool:
    return (
        len(headers) > MAX_HEADERS
        or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES
    )
