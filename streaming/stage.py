"""A stage: a sans-IO transform on a batch of events.

A batch is all events completed by one network read, in order. A stage takes a batch and
a time and returns a batch; it never waits, sleeps or does I/O, so testing one needs no
loop. Stages run in the order given and know nothing of each other.
"""

from typing import Protocol

import msgspec

from streaming.dialects.reading import Dialect, Reading
from streaming.sse import Frame


class Event(msgspec.Struct, frozen=True, gc=False):
    """A frame and what its dialect read in it; a run counts as one."""

    frame: Frame
    reading: Reading


type Batch = list[Event]


def read(dialect: Dialect, frame: Frame) -> Batch:
    """A frame as events: a run as one event, where the dialect finds nothing in it."""
    if frame.events == 1:
        return [Event(frame, dialect.read(frame.data))]
    reading = dialect.read_run(frame.data, frame.events)
    if reading is not None:
        return [Event(frame, reading)]
    return [Event(one, dialect.read(one.data)) for one in frame.split()]


class Stage(Protocol):
    """One idea, applied to every batch of a stream."""

    def apply(self, batch: Batch, now: float) -> Batch:
        """What goes on to the next stage.

        Args:
            batch: Events of one read, possibly none.
            now: Monotonic seconds.
        """
        ...

    def flush(self) -> Batch:
        """What was held back, when nothing more will come."""
        ...
