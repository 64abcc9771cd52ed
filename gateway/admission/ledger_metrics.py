"""What the ledger tells, as metrics."""

from typing import override

from gateway.admission.ledger import Swept
from gateway.admission.observer import Observer
from gateway.telemetry.metrics import Metrics


class LedgerMetrics(Observer):
    """What the ledger tells, as metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @override
    def called(self, move: str, seconds: float) -> None:
        self._metrics.redis_call(move).observe(seconds)

    @override
    def swept(self, swept: Swept) -> None:
        for result, amount in (
            ("expired", swept.expired),
            ("released", swept.released),
        ):
            if amount:
                self._metrics.settlement(result, amount)

    @override
    def degraded(self, reason: str) -> None:
        self._metrics.degraded(reason)

    @override
    def store_changed(self, *, is_up: bool) -> None:
        self._metrics.redis_up.set(is_up)
