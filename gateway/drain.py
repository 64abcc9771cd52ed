"""Leaving without dropping anybody: when a draining process may go."""

from enum import Enum


class DrainStep(Enum):
    """What a draining server does next."""

    WAIT = "wait"  # exchanges may still finish
    END = "end"  # their time is up: end them, settle, go
    GO = "go"  # nothing is left


class Drain:
    """Decides from times alone; the server acts.

    Args:
        drain_seconds: How long exchanges may go on.
        end_seconds: How long ending them may take after that.
        now: When the drain began.
    """

    def __init__(self, drain_seconds: float, end_seconds: float, now: float) -> None:
        self._end_at = now + drain_seconds
        self._go_at = self._end_at + end_seconds

    def step(self, live: int, now: float) -> DrainStep:
        """The next step with this many live exchanges."""
        if live == 0 or now >= self._go_at:
            return DrainStep.GO
        return DrainStep.WAIT if now < self._end_at else DrainStep.END
