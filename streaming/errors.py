"""Faults, in three families by blame: the client's, the provider's, our own.

A fault carries everything a caller needs to answer for it: HTTP status, error code,
outcome, and whether another candidate may be tried. Its message goes to the client as
it is, so it never holds a host name, a secret or text of a prompt.
"""

from typing import ClassVar

from streaming.outcome import Outcome


class Fault(Exception):
    """Something refused or ended an exchange.

    Args:
        message: For the client. Default: the first line of the class's docstring.
        retry_after_seconds: How long to wait; sent with 429 and 503.
        should_retry: False where waiting cannot cure it.
        param: The request field at fault, if there is one.
    """

    status: int = 500
    code: str = "internal_error"
    type: str = "server_error"
    outcome: ClassVar[Outcome] = Outcome.GATEWAY_ERROR
    try_next: ClassVar[bool] = False

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after_seconds: float | None = None,
        should_retry: bool = True,
        param: str | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").partition("\n")[0]
        self.retry_after_seconds = retry_after_seconds
        self.should_retry = should_retry
        self.param = param
        super().__init__(self.message)


class ClientFault(Fault):
    """The request cannot be served as it is."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"
    outcome = Outcome.REJECTED


class UpstreamFault(Fault):
    """The provider failed."""

    status = 502
    code = "upstream_error"
    type = "upstream_error"
    outcome = Outcome.UPSTREAM_ERROR


class LocalFault(Fault):
    """The gateway failed."""


class ClientDisconnected(ClientFault):
    """The client left."""

    outcome = Outcome.CLIENT_DISCONNECT


class ClientStalled(ClientFault):
    """The client stopped reading."""

    outcome = Outcome.CLIENT_STALLED


class UpstreamTruncated(UpstreamFault):
    """The provider's answer ended before it was complete."""

    code = "upstream_truncated"
    outcome = Outcome.UPSTREAM_TRUNCATED


class UpstreamInvalid(UpstreamFault):
    """The provider's answer is not what was asked for."""

    code = "upstream_invalid_response"


class UpstreamOverrun(UpstreamInvalid):
    """The provider generated more than it was asked for."""


class UpstreamTimeout(UpstreamFault):
    """The provider did not answer in time."""

    status = 504
    code = "upstream_timeout"
    outcome = Outcome.UPSTREAM_TIMEOUT


class UpstreamSilent(UpstreamTimeout):
    """The provider did not begin in time."""

    try_next = True  # elsewhere: this one has been left


class UpstreamReported(UpstreamFault):
    """The provider reported an error of its own.

    Status and code are the provider's where the caller may see them (its 400, 404,
    413, 422 and 429), else those of a failed provider.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        status: int = 502,
        code: str = "upstream_error",
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after_seconds=retry_after_seconds)
        self.status = status
        self.code = code
        self.type = _TYPES.get(status, "upstream_error")


_TYPES = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
