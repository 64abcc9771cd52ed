"""Why an exchange ended: a closed list, used by code, metrics, logs and docs."""

from enum import StrEnum


class Outcome(StrEnum):
    """Why an exchange ended. The first cause wins; it never changes afterwards."""

    COMPLETED = "completed"
    CLIENT_DISCONNECT = "client_disconnect"
    CLIENT_STALLED = "client_stalled"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    QUOTA_EXHAUSTED = "quota_exhausted"
    REJECTED = "rejected"
    DRAINED = "drained"
    GATEWAY_ERROR = "gateway_error"
