"""What was asked of the simulated provider, and how each of it ended."""

import time
from collections import deque
from enum import StrEnum
from typing import Final

import msgspec

from gateway.demo.scenario import Fault
from gateway.demo.wire import Write

LOG_LENGTH: Final = 100_000


class Moment(msgspec.Struct, frozen=True):
    """An instant on both clocks; the monotonic one is shared by all processes here."""

    wall_ns: int
    monotonic_ns: int


def now() -> Moment:
    """This instant."""
    return Moment(time.time_ns(), time.monotonic_ns())


class End(StrEnum):
    """Why an attempt is over: who did it."""

    COMPLETED = "completed"
    CLIENT_CLOSED = "client_closed"
    FAULT = "fault"
    STOPPED = "stopped"


class Attempt(msgspec.Struct):
    """One generation request, from its last byte to the end of its answer.

    Attributes:
        request_id: Its ``x-request-id``, or the one made up for it.
        path: Where it came to.
        started: When the request was whole.
        model: As the request named it; empty if the request was refused.
        stream: Whether it asked for a stream.
        fault: What was to go wrong.
        tokens: Sent so far, of all choices.
        bytes_written: Handed to the socket so far, HTTP framing included.
        first_byte: When the answer's first byte was written.
        end: None while it goes on.
        ended: When the last byte was written, or when the client was seen to close.
    """

    request_id: str
    path: str
    started: Moment
    model: str = ""
    stream: bool = False
    fault: Fault | None = None
    tokens: int = 0
    bytes_written: int = 0
    first_byte: Moment | None = None
    end: End | None = None
    ended: Moment | None = None

    def count(self, write: Write) -> None:
        """Add what is written now."""
        self.first_byte = self.first_byte or now()
        self.tokens += write.tokens
        self.bytes_written += len(write.data)

    def finish(self, end: End) -> None:
        """End it now; an answer that was spoilt to its end is no completed one."""
        spoilt = end is End.COMPLETED and self.fault is not None
        self.end = End.FAULT if spoilt else end
        self.ended = now()


class AttemptLog(deque[Attempt]):
    """The last 100,000 attempts, newest last; an attempt is in it from its start on.

    Attributes:
        total: Attempts ever, not lowered by ``clear``.
    """

    def __init__(self) -> None:
        super().__init__(maxlen=LOG_LENGTH)
        self.total = 0

    def begin(self, attempt: Attempt) -> None:
        """Add an attempt that starts."""
        self.total += 1
        self.append(attempt)
