"""What of the provider's usage the client gets to see.

The gateway always asks for usage. A client that did not ask must not notice.
"""

from enum import Enum
from typing import override

from streaming.dialects.members import without_usage, without_usages
from streaming.stage import Batch, Event, Stage


class UsageWish(Enum):
    """What the client asked for in ``stream_options``."""

    NONE = "none"
    FINAL = "final"  # include_usage
    EVERYTHING = "everything"  # continuous_usage_stats


class UsageView(Stage):
    """Hides usage the client did not ask for; all other bytes stay as they are.

    ========== =============================== ==================================
    wish       the usage event (no choices)    ``usage`` in other events
    ========== =============================== ==================================
    NONE       dropped                         cut out
    FINAL      untouched                       cut out, but for the last one of a
                                               provider without a usage event
    EVERYTHING untouched                       untouched
    ========== =============================== ==================================

    Whether usage in a finish event is the last one only the next event can tell, so
    with FINAL that one event waits for it.

    Args:
        wish: What the client asked for.
        running: Whether the gateway asked for running usage on its own account. If
            not, whoever asked for usage gets what the provider makes of it.
    """

    def __init__(self, wish: UsageWish, *, running: bool) -> None:
        self._hide = wish is UsageWish.NONE
        self._untouched = wish is UsageWish.EVERYTHING or (
            wish is UsageWish.FINAL and not running
        )
        self._held: Event | None = None

    @override
    def apply(self, batch: Batch, now: float) -> Batch:
        """The batch as the client may see it."""
        if self._untouched:
            return batch
        if self._hide:
            return [
                _hidden(event) if event.reading.has_usage else event
                for event in batch
                if event.reading.choices or event.reading.usage is None
            ]
        seen: Batch = []
        for event in batch:
            self._final_only(event, seen)
        return seen

    @override
    def flush(self) -> Batch:
        """The finish event that waited: its usage was the last."""
        held, self._held = self._held, None
        return [] if held is None else [held]

    def _final_only(self, event: Event, seen: Batch) -> None:
        if self._held is not None:
            superseded = event.reading.usage is not None
            seen.append(_hidden(self._held) if superseded else self._held)
            self._held = None
        if event.reading.usage is None or _is_usage_event(event):
            seen.append(event)
        elif event.reading.finishes:
            self._held = event
        else:
            seen.append(_hidden(event))


def _is_usage_event(event: Event) -> bool:
    return event.reading.usage is not None and not event.reading.choices


def _hidden(event: Event) -> Event:
    frame = event.frame
    if frame.events == 1:
        return Event(frame.with_data(without_usage(frame.data)), event.reading)
    wire = without_usages(frame.wire, frame.events)
    if wire is None:
        parts = [one.with_data(without_usage(one.data)) for one in frame.split()]
        wire = b"".join([one.wire for one in parts])
    return Event(frame.with_wire(wire), event.reading)
