"""The gateway's own refusals, and the one envelope all errors leave in.

Each class is a row of the error table in docs/errors.md; the table is generated from
them. Faults of the relay itself live in ``streaming.errors``.
"""

from typing import TypedDict

from streaming.errors import (
    ClientFault,
    Fault,
    LocalFault,
    UpstreamFault,
    UpstreamReported,
    UpstreamTimeout,
)
from streaming.outcome import Outcome


class ErrorBody(TypedDict):
    """The inside of an OpenAI error envelope."""

    message: str
    type: str
    param: str | None
    code: str


class Envelope(TypedDict):
    """What every error looks like, as a JSON body or as the last frame of a stream."""

    error: ErrorBody


def envelope(fault: Fault) -> Envelope:
    """The fault as the client sees it."""
    return {
        "error": {
            "message": fault.message,
            "type": fault.type,
            "param": fault.param,
            "code": fault.code,
        }
    }


class InvalidRequest(ClientFault):
    """The request is not valid."""


class InvalidApiKey(ClientFault):
    """Missing or invalid API key.

    One text for missing, malformed, unknown and revoked keys, so that nothing can be
    learned by trying.
    """

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class ModelNotAllowed(ClientFault):
    """This key may not use this model."""

    status = 403
    code = "model_not_allowed"
    type = "permission_error"


class ModelNotFound(ClientFault):
    """No such model."""

    status = 404
    code = "model_not_found"


class NotFound(ClientFault):
    """No such route."""

    status = 404
    code = "not_found"


class MethodNotAllowed(ClientFault):
    """This route does not take this method."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(ClientFault):
    """The request did not arrive in time."""

    status = 408
    code = "request_timeout"


class RequestTooLarge(ClientFault):
    """The request body is larger than this gateway takes."""

    status = 413
    code = "request_too_large"


class UnsupportedEncoding(ClientFault):
    """Request bodies must not be compressed."""

    status = 415
    code = "unsupported_encoding"


class HeadersTooLarge(ClientFault):
    """The request's headers are larger than this gateway takes."""

    status = 431
    code = "headers_too_large"


class RateLimited(ClientFault):
    """Too many requests or tokens in a minute."""

    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"


class ConcurrencyExceeded(ClientFault):
    """Too many requests of this key are in flight."""

    status = 429
    code = "concurrency_exceeded"
    type = "rate_limit_error"


class QuotaExhausted(ClientFault):
    """The token quota of this key is used up."""

    status = 429
    code = "insufficient_quota"
    type = "insufficient_quota"
    outcome = Outcome.QUOTA_EXHAUSTED


class StoreUnavailable(LocalFault):
    """The quota store cannot be reached."""

    status = 503
    code = "quota_store_unavailable"


class Overloaded(LocalFault):
    """The gateway is at its limit."""

    status = 503
    code = "gateway_overloaded"
    outcome = Outcome.REJECTED
    try_next = True


class Draining(LocalFault):
    """The gateway is shutting down."""

    status = 503
    code = "gateway_draining"
    outcome = Outcome.DRAINED


class NoHealthyProvider(UpstreamFault):
    """No provider of this model is available."""

    status = 503
    code = "no_healthy_provider"


class UpstreamUnreachable(UpstreamFault):
    """The provider could not be reached."""

    try_next = True


class ConnectTimeout(UpstreamTimeout):
    """The provider could not be reached in time."""

    try_next = True


class UpstreamLost(UpstreamFault):
    """The provider closed the connection.

    It may have accepted the request, so no other candidate is asked.
    """


class UpstreamBusy(UpstreamFault):
    """The provider is not available."""

    status = 503
    try_next = True


class UpstreamLimited(UpstreamReported):
    """The provider's own limit is reached; another one may have room."""

    try_next = True
