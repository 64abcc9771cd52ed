"""What a ledger tells in passing."""

from typing import Protocol

from gateway.admission.ledger import Swept


class Observer(Protocol):
    """Is told what happens in passing. Called in the event loop; must not raise."""

    def called(self, move: str, seconds: float) -> None:
        """A move was answered, after this long."""

    def swept(self, swept: Swept) -> None:
        """A call ended others' reservations; what ``sweep`` ends, it returns."""

    def degraded(self, reason: str) -> None:
        """``store_lost``: a principal's books begin anew."""

    def store_changed(self, *, is_up: bool) -> None:
        """The store was found, or lost."""


class Unobserved:
    """The observer of a ledger that nobody observes."""

    def called(self, move: str, seconds: float) -> None:
        """Nothing."""

    def swept(self, swept: Swept) -> None:
        """Nothing."""

    def degraded(self, reason: str) -> None:
        """Nothing."""

    def store_changed(self, *, is_up: bool) -> None:
        """Nothing."""
