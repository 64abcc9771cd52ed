"""Success or failure: what a stream's events say about how it ended."""

from typing import override

from streaming.dialects.reading import ErrorReport, Reading
from streaming.errors import UpstreamFault, UpstreamReported, UpstreamTruncated
from streaming.stage import Batch, Stage

_FAILED = ("abort", "error")
_CALLERS_OWN = (400, 404, 413, 422, 429)
_CODES = {413: "request_too_large", 429: "rate_limit_exceeded", 404: "model_not_found"}
_UNAVAILABLE = (503, 529)


class Verdict(Stage):
    """Lets events through until the stream is over, and knows how it ended.

    ================================== =========================================
    the stream                         is
    ================================== =========================================
    brought ``[DONE]``, no error       complete
    finished every choice it spoke of  complete
    reported an error                  failed (``[DONE]`` afterwards is nothing)
    finished with ``abort``, ``error`` failed
    ended in any other way             truncated
    ================================== =========================================

    Attributes:
        fault: How the provider failed, as far as its events tell.
        done: ``[DONE]`` has been seen.
    """

    def __init__(self) -> None:
        self.fault: UpstreamFault | None = None
        self.done = False
        self._seen: set[int] = set()
        self._finished: set[int] = set()

    @property
    def complete(self) -> bool:
        """Whether the stream has succeeded, should it end now."""
        if self.fault is not None:
            return False
        return self.done or (bool(self._finished) and self._seen <= self._finished)

    @property
    def over(self) -> bool:
        """Whether nothing that follows may reach the client."""
        return self.done or self.fault is not None

    @override
    def apply(self, batch: Batch, now: float) -> Batch:
        """Events up to and with ``[DONE]``, or up to the failure."""
        for position, event in enumerate(batch):
            if self.over or not self.judge(event.reading):
                return batch[:position]
        return batch

    @override
    def flush(self) -> Batch:
        """Nothing is ever held back."""
        return []

    def truncation(self) -> UpstreamFault | None:
        """What a body that ends here means; None when the stream is complete."""
        return None if self.complete else self.fault or UpstreamTruncated()

    def judge(self, reading: Reading) -> bool:
        """Take one event into account; tells whether the client may have it."""
        if reading.done:
            self.done = True
            return True
        if reading.error is not None:
            self.fault = reported(reading.error)
            return False
        self._seen.update(reading.choices)
        for choice, reason in reading.finishes:
            self._finished.add(choice)
            if reason in _FAILED:
                self.fault = UpstreamReported("The provider gave up on its answer.")
        # An aborted choice's last words are words; its bare finish is not relayed.
        return self.fault is None or bool(reading.texts)


def reported(report: ErrorReport, status: int | None = None) -> UpstreamReported:
    """A provider's error as a fault, with the status the caller may see.

    Args:
        report: The provider's error object.
        status: The answer's HTTP status, where it was an error itself.
    """
    status = status or report.status
    message = report.message or "The provider reported an error."
    if status in _CALLERS_OWN:
        code = report.code or _CODES.get(status, "invalid_request")
        return UpstreamReported(message, status=status, code=code, param=report.param)
    return UpstreamReported(message, status=503 if status in _UNAVAILABLE else 502)
