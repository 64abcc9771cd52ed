"""Faults as HTTP: one envelope, real statuses, and when to try again."""

from collections.abc import Mapping
from http import HTTPStatus
from math import ceil

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import (
    MethodNotAllowed,
    NotFound,
    envelope,
)
from streaming.errors import Fault, LocalFault

RETRYABLE = (429, 503)


def error_body(fault: Fault) -> bytes:
    """The envelope as JSON."""
    return msgspec.json.encode(envelope(fault))


def error_frame(fault: Fault) -> bytes:
    """The envelope as the last event of a stream."""
    return b"data: " + error_body(fault) + b"\n\n"


def error_headers(fault: Fault) -> Mapping[str, str]:
    """``retry-after`` (whole seconds), ``retry-after-ms`` and ``x-should-retry``.

    Every 429 and 503 says when to come back; a fault that does not know says a second.
    """
    headers = {"content-type": "application/json"}
    seconds = fault.retry_after_seconds
    if fault.status in RETRYABLE:
        seconds = 1.0 if seconds is None else seconds
        if not fault.should_retry:
            headers["x-should-retry"] = "false"
    if seconds is not None:
        headers["retry-after"] = str(ceil(seconds))
        headers["retry-after-ms"] = str(ceil(seconds * 1000))
    return headers


def error_response(fault: Fault) -> Response:
    """The fault as a whole answer."""
    return Response(error_body(fault), fault.status, error_headers(fault))


async def answer_fault(request: Request, fault: Exception) -> Response:  # noqa: RUF029 - the framework awaits it
    """What the framework calls for a fault raised by a route or a dependency."""
    known = fault if isinstance(fault, Fault) else LocalFault("The gateway failed.")
    request.app.state.services.metrics.rejection(known.code)
    return error_response(known)


async def answer_no_route(request: Request, error: Exception) -> Response:
    """No route has this path, or this path not this method."""
    wrong_method = getattr(error, "status_code", 404) == HTTPStatus.METHOD_NOT_ALLOWED
    return await answer_fault(
        request, MethodNotAllowed() if wrong_method else NotFound()
    )
