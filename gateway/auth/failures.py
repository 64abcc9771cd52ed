"""Who guesses keys: failed authentications, counted by where they come from."""

from collections import OrderedDict, deque
from ipaddress import IPv4Address, IPv6Address, ip_address

FAILURES_PER_MINUTE = 30
"""Failures one source may have in any 60 seconds and still be told 401."""

_WINDOW_SECONDS = 60.0
_MOST_SOURCES = 4096  # about 1.5 kB each


class FailedAuthLimiter:
    """Refuses a source that fails too often; it is never asked about a valid key.

    A source is an IPv4 address or the /64 of an IPv6 one, which is what one customer
    of a network has. When there are too many, the one whose last failure is longest
    ago is forgotten.
    """

    def __init__(self) -> None:
        self._times: OrderedDict[str | int, deque[float]] = OrderedDict()

    def note_failure(self, address: str, now: float) -> float | None:
        """Count a failed authentication, unless its source has had too many.

        Args:
            address: Of the peer, as the socket names it.
            now: Seconds on any clock that only goes forward.

        Returns:
            None, or the seconds until the next failure would be counted again. A
            refused failure is not counted, so waiting always helps.
        """
        source = _source(address)
        times = self._times.setdefault(source, deque(maxlen=FAILURES_PER_MINUTE))
        self._times.move_to_end(source)
        if len(self._times) > _MOST_SOURCES:
            self._times.popitem(last=False)
        # `times` holds the last failures only: a full one tells when the window ends.
        if len(times) == FAILURES_PER_MINUTE and now < times[0] + _WINDOW_SECONDS:
            return times[0] + _WINDOW_SECONDS - now
        times.append(now)
        return None


def _source(address: str) -> str | int:
    try:
        parsed = ip_address(address)
    except ValueError:  # a Unix socket's peer has none
        return address
    match parsed:
        case IPv6Address(ipv4_mapped=IPv4Address() as mapped):
            return str(mapped)
        case IPv6Address():
            return int(parsed) >> 64
        case _:
            return address
