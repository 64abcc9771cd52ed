"""What one process can take: exchanges, connections and file descriptors.

An exchange needs two sockets, its client's and its provider's. A third one is left for
clients that are connected and ask for nothing at the moment::

    descriptors   FIXED │ clients in an exchange │ their providers │ idle clients
                        └─────── a third ────────┴──── a third ────┴── a third ──
"""

import resource
from dataclasses import dataclass

FIXED_FILES = 64
"""Listener, store, logs, probes, and clients that are being refused."""
_SOCKETS = 3


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the process may take on; one more is refused.

    Attributes:
        exchanges: Live at a time.
        lag_seconds: How late the event loop may be for a while.
    """

    exchanges: int
    lag_seconds: float


def exchanges_within(files: int) -> int:
    """How many exchanges may be live with this many file descriptors; at least 1."""
    return max(1, (files - FIXED_FILES) // _SOCKETS)


def connections_within(files: int) -> int:
    """How many clients may be connected; at least 2."""
    return 2 * exchanges_within(files)


def file_limit() -> int:
    """How many descriptors this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_file_limit() -> None:
    """Take all the descriptors that the system would give on request."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
