"""An observer that keeps all it is told."""

from gateway.admission.ledger import Swept


class Counts:
    """Satisfies ``gateway.admission.redis_ledger.Observer``."""

    def __init__(self) -> None:
        self.moves: list[str] = []
        self.sweeps: list[Swept] = []
        self.losses: list[str] = []
        self.changes: list[bool] = []

    def called(self, move: str, seconds: float) -> None:
        assert 0 <= seconds < 1
        self.moves.append(move)

    def swept(self, swept: Swept) -> None:
        self.sweeps.append(swept)

    def degraded(self, reason: str) -> None:
        self.losses.append(reason)

    def store_changed(self, *, is_up: bool) -> None:
        self.changes.append(is_up)
