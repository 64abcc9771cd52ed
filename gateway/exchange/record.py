"""What an exchange leaves in the metrics about its tokens."""

import msgspec

from gateway.admission.ledger import Usage
from gateway.telemetry.metrics import Metrics
from streaming.stages.metering import Meter


class Spent(msgspec.Struct, frozen=True):
    """An exchange that has ended.

    Attributes:
        model: Its public name.
        provider: Who answered.
        charged: What was settled; None when nothing was.
        complete: It came to its proper end.
        started_at: When the request had arrived, in monotonic seconds.
    """

    model: str
    provider: str
    charged: Usage | None
    complete: bool
    started_at: float


def record_tokens(metrics: Metrics, meter: Meter, spent: Spent) -> None:
    """Count its tokens by source, and note how fast they came."""
    by = spent.model, spent.provider
    if spent.charged is not None:
        source = meter.source(ended=spent.complete)
        charged = spent.charged
        metrics.tokens(*by, "prompt", source).inc(charged.prompt_tokens)
        metrics.tokens(*by, "completion", source).inc(charged.completion_tokens)
    first, last, batches = meter.first_text_at, meter.last_text_at, meter.text_batches
    if first is None or last is None:
        return
    metrics.first_token(*by).observe(first - spent.started_at)
    if batches > 1:
        metrics.inter_token(*by).observe((last - first) / (batches - 1))
