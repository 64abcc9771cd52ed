"""Deadlines of an exchange, decided from times alone.

Nothing here waits. An exchange says what it waits for and since when; a ticker asks
every live exchange a few times a second whether its time is up.
"""

from collections.abc import Callable
from enum import Enum

import msgspec

from streaming.errors import ClientStalled, Fault, UpstreamSilent, UpstreamTimeout

type Clock = Callable[[], float]
"""Monotonic seconds."""


class Deadlines(msgspec.Struct, frozen=True):
    """How long an exchange may wait, in seconds.

    Attributes:
        first_byte_seconds: Streams: from dispatch to the provider's first body byte.
        idle_seconds: Streams: between two reads from the provider.
        write_stall_seconds: Our socket to the client made no progress.
        total_seconds: The whole exchange.
        heartbeat_seconds: Silence towards the client after which a comment is sent;
            0 is never.
    """

    first_byte_seconds: float = 60.0
    idle_seconds: float = 30.0
    write_stall_seconds: float = 20.0
    total_seconds: float = 1800.0
    heartbeat_seconds: float = 15.0


class Wait(Enum):
    """What an exchange waits for."""

    NOTHING = "nothing"
    FIRST_BYTE = "first_byte"
    NEXT_BYTES = "next_bytes"
    CLIENT = "client"


class Pulse:
    """What one exchange waits for, and since when.

    Args:
        deadlines: How long it may.
        now: Monotonic seconds.

    Attributes:
        client_fed_at: When the client was last sent something.
    """

    __slots__ = (
        "_deadlines",
        "_since",
        "_started_at",
        "_unsent",
        "_wait",
        "client_fed_at",
    )

    def __init__(self, deadlines: Deadlines, now: float) -> None:
        self._deadlines = deadlines
        self._started_at = now
        self._since = now
        self._unsent = 0
        self._wait = Wait.NOTHING
        self.client_fed_at = now

    @property
    def waits_for(self) -> Wait:
        """What the exchange waits for."""
        return self._wait

    def wait_for(self, wait: Wait, now: float) -> None:
        """From now on the exchange waits for this."""
        self._wait = wait
        self._since = now

    def begin_again(self, now: float) -> None:
        """Another provider is asked: its time begins now."""
        if self._wait is Wait.FIRST_BYTE:
            self._since = now

    def note_unsent(self, unsent_bytes: int, now: float) -> None:
        """What of our answer the client has not taken; less of it is progress."""
        if unsent_bytes < self._unsent:
            self._since = now
        self._unsent = unsent_bytes

    def overdue(self, now: float) -> Fault | None:
        """The fault of whoever let the time run out; None while there is time."""
        deadlines = self._deadlines
        if now - self._started_at >= deadlines.total_seconds:
            return UpstreamTimeout("The answer took longer than this gateway allows.")
        return self._wait_overdue(now - self._since)

    def heartbeat_due(self, now: float) -> bool:
        """Whether the client has heard nothing for long, with nothing under way."""
        silence = self._deadlines.heartbeat_seconds
        return (
            silence > 0
            and now - self.client_fed_at >= silence
            and self._wait in {Wait.FIRST_BYTE, Wait.NEXT_BYTES}
        )

    def _wait_overdue(self, waited: float) -> Fault | None:
        deadlines = self._deadlines
        match self._wait:
            case Wait.FIRST_BYTE if waited >= deadlines.first_byte_seconds:
                return UpstreamSilent()
            case Wait.NEXT_BYTES if waited >= deadlines.idle_seconds:
                return UpstreamTimeout("The provider stopped sending.")
            case Wait.CLIENT if waited >= deadlines.write_stall_seconds:
                return ClientStalled()
            case _:
                return None
