"""Every metric of the gateway, by name, once.

Label values come from the configuration or from closed enums, so the number of series
is known before the first request. Children are bound per label set and kept: nothing is
looked up per token.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache, partial
from importlib.metadata import version

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    start_http_server,
)

from gateway.telemetry.board import Board, Join, Seat
from streaming.outcome import Outcome

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

OF_WORKERS: Mapping[str, Join] = {
    "gateway_provider_up": min,
    "gateway_breaker_open": max,
    "gateway_redis_up": min,
    "gateway_event_loop_lag_seconds": max,
    "gateway_build_info": max,
}
"""What is told of gauges where workers differ: the worst. All others are summed."""


class AttemptResult(StrEnum):
    """How one try of a candidate ended."""

    OK = "ok"
    ERROR = "error"
    TIMEOUT = "timeout"
    REFUSED = "refused"  # the provider answered, with a 4xx
    CANCELLED = "cancelled"  # the client left, or the gateway gave up


class Mode(StrEnum):
    """How the client wants its answer."""

    STREAM = "stream"
    JSON = "json"


class Ended(msgspec.Struct, frozen=True):
    """An exchange that has ended; ``provider`` is ``none`` when nobody answered."""

    model: str
    provider: str
    mode: Mode
    outcome: Outcome
    seconds: float


class Metrics:
    """The registry and everything in it.

    One object per process, made by the composition root; tests make their own.

    Args:
        seat: Of this process, where it is one of several workers.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, seat: Seat | None = None) -> None:
        self._seat = seat
        registry = self._registry = CollectorRegistry()
        counter = partial(Counter, namespace="gateway", registry=registry)
        gauge = partial(Gauge, namespace="gateway", registry=registry)
        histogram = partial(Histogram, namespace="gateway", registry=registry)
        self._exchanges = counter(
            "exchanges_total",
            "Exchanges that reserved, by outcome.",
            ("model", "provider", "mode", "outcome"),
        )
        self._duration = histogram(
            "exchange_duration_seconds",
            "From request to end.",
            ("model", "mode"),
            buckets=_LONG,
        )
        self._first_token = histogram(
            "time_to_first_token_seconds",
            "From request to the first content, reasoning or tool delta.",
            ("model", "provider"),
            buckets=_LATENCY,
        )
        self._inter_token = histogram(
            "inter_token_seconds",
            "Mean time between reads that brought text, per exchange.",
            ("model", "provider"),
            buckets=_SHORT,
        )
        self.overhead_seconds = histogram(
            "overhead_seconds",
            "Our own time, from request to dispatch.",
            buckets=_SHORT,
        )
        self.active_streams = gauge(
            "active_streams",
            "Streams being relayed.",
        )
        self._tokens = counter(
            "tokens_total",
            "Tokens charged, by who counted them.",
            ("model", "provider", "direction", "source"),
        )
        self.reservations_open = gauge(
            "reservations_open",
            "Reservations this gateway holds.",
        )
        self.reserved_tokens = gauge(
            "reserved_tokens",
            "Tokens in reservations this gateway holds.",
        )
        self._settlements = counter(
            "settlements_total",
            "Settlements, by what they did.",
            ("result",),
        )
        self.settlement_queue = gauge(
            "settlement_queue",
            "Settlements that wait for the store.",
        )
        self._rejections = counter(
            "rejections_total",
            "Requests refused before they reserved.",
            ("reason",),
        )
        self._attempts = counter(
            "attempts_total",
            "Tries of candidates.",
            ("provider", "result"),
        )
        self.provider_up = gauge(
            "provider_up", "Whether the provider can be asked.", ("provider",)
        )
        self.breaker_open = gauge(
            "breaker_open", "Whether a candidate there is left alone.", ("provider",)
        )
        self.backpressure_seconds = counter(
            "backpressure_seconds_total",
            "Time spent waiting for clients to read.",
        )
        self.slow_clients = counter(
            "slow_clients_total",
            "Exchanges cut because the client stopped reading.",
        )
        self.upstream_close_seconds = histogram(
            "upstream_close_seconds",
            "From the client's leaving to the provider's socket closed.",
            buckets=_SHORT,
        )
        self._redis_call = histogram(
            "redis_call_seconds",
            "Ledger calls.",
            ("script",),
            buckets=_SHORT,
        )
        self.redis_up = gauge(
            "redis_up",
            "Whether the quota store answers.",
        )
        self._degraded = counter(
            "degraded_total",
            "What the gateway went on without.",
            ("reason",),
        )
        self.event_loop_lag = gauge(
            "event_loop_lag_seconds",
            "How late the event loop ran its last tick.",
        )
        gauge(
            "build_info",
            "The version that runs.",
            ("version",),
        ).labels(version("sluice-gateway")).set(1)
        self._bind()

    def _bind(self) -> None:
        """Keep every child once it is made."""
        self.exchanges = cache(self._exchanges.labels)
        self.duration = cache(self._duration.labels)
        self.first_token = cache(self._first_token.labels)
        self.inter_token = cache(self._inter_token.labels)
        self.tokens = cache(self._tokens.labels)
        self.redis_call = cache(self._redis_call.labels)

    def exchange(self, ended: Ended) -> None:
        """An exchange that had reserved has ended."""
        self.exchanges(ended.model, ended.provider, ended.mode, ended.outcome).inc()
        self.duration(ended.model, ended.mode).observe(ended.seconds)
        if ended.outcome is Outcome.CLIENT_STALLED:
            self.slow_clients.inc()

    def settlement(self, result: str, amount: int = 1) -> None:
        """Settlements did this."""
        self._settlements.labels(result).inc(amount)

    def rejection(self, reason: str) -> None:
        """A request was refused before it reserved; the reason is its error code."""
        self._rejections.labels(reason).inc()

    def attempt(self, provider: str, result: AttemptResult) -> None:
        """A try of a candidate has ended."""
        self._attempts.labels(provider, result).inc()

    def degraded(self, reason: str) -> None:
        """The gateway goes on without something."""
        self._degraded.labels(reason).inc()

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Serve all of it on a port of its own, from a thread; returns what ends that.

        Of several workers it is what they have reported.

        Raises:
            OSError: The port is taken.
        """
        server, thread = start_http_server(port, host, self._whole)

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return close

    def report(self) -> None:
        """Let the other workers know, if there are any."""
        if self._seat is not None:
            self._seat.report(self._registry.collect())

    def exposition(self) -> bytes:
        """All of it, in Prometheus' text format."""
        self.report()
        return generate_latest(self._whole)

    @property
    def _whole(self) -> CollectorRegistry | Board:
        return self._registry if self._seat is None else self._seat.board
