import os

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.board import Board, Place, Report
from gateway.telemetry.metrics import OF_WORKERS, AttemptResult, Metrics

type Samples = dict[tuple[str, str], float]


def board_of(workers: int) -> Board:
    return Board(workers, OF_WORKERS)


def told(board: Board) -> Samples:
    """What anybody who is scraped would tell, by name and first label."""
    return samples(generate_latest(board))


def samples(exposition: bytes) -> Samples:
    return {
        (one.name, next(iter(one.labels.values()), "")): one.value
        for family in text_string_to_metric_families(exposition.decode())
        for one in family.samples
    }


def test_scrape_adds_up_what_all_workers_have_reported() -> None:
    board = board_of(2)
    first, second = (Metrics(board.seat(number)) for number in range(2))
    first.rejection("rate_limited")
    second.rejection("rate_limited")
    second.rejection("overloaded")
    for metrics, seconds in ((first, 0.001), (second, 0.02)):
        metrics.overhead_seconds.observe(seconds)
        metrics.active_streams.inc(3)
        metrics.report()
    found = samples(first.exposition())
    assert found == samples(second.exposition())
    assert found["gateway_rejections_total", "rate_limited"] == 2
    assert found["gateway_rejections_total", "overloaded"] == 1
    assert found["gateway_overhead_seconds_count", ""] == 2
    assert found["gateway_overhead_seconds_bucket", "0.001"] == 1
    assert found["gateway_overhead_seconds_bucket", "+Inf"] == 2
    assert found["gateway_active_streams", ""] == 6


def test_gauges_that_cannot_be_summed_tell_the_worst() -> None:
    board = board_of(2)
    for number in range(2):
        metrics = Metrics(board.seat(number))
        metrics.redis_up.set(number)
        metrics.provider_up.labels("p").set(number)
        metrics.breaker_open.labels("p").set(number)
        metrics.event_loop_lag.set(number)
        metrics.report()
    found = told(board)
    assert found["gateway_redis_up", ""] == 0
    assert found["gateway_provider_up", "p"] == 0
    assert found["gateway_breaker_open", "p"] == 1
    assert found["gateway_event_loop_lag_seconds", ""] == 1
    (build,) = [value for (name, _), value in found.items() if "build" in name]
    assert build == 1


def test_dead_worker_leaves_its_counters_and_takes_its_gauges() -> None:
    board = board_of(2)
    dead, alive = (Metrics(board.seat(number)) for number in range(2))
    for metrics in (dead, alive):
        metrics.attempt("p", AttemptResult.OK)
        metrics.active_streams.inc()
        metrics.report()
    assert board.reporter(0) == os.getpid()
    board.retire(0)
    assert board.reporter(0) == 0
    assert told(board)["gateway_attempts_total", "p"] == 2
    assert told(board)["gateway_active_streams", ""] == 1


def test_next_workers_go_on_from_what_all_before_them_have_counted() -> None:
    board = board_of(1)
    for lives in range(1, 4):
        metrics = Metrics(board.seat(0))
        metrics.attempt("p", AttemptResult.OK)
        metrics.backpressure_seconds.inc(0.5)
        metrics.report()
        metrics.report()
        assert told(board)["gateway_attempts_total", "p"] == lives
        board.retire(0)
        assert told(board)["gateway_attempts_total", "p"] == lives
    assert told(board)["gateway_backpressure_seconds_total", ""] == 1.5


def test_series_exist_since_the_first_of_their_workers() -> None:
    board = board_of(1)
    created = []
    for _ in range(2):
        metrics = Metrics(board.seat(0))
        metrics.report()
        created.append(told(board)["gateway_slow_clients_created", ""])
        board.retire(0)
    assert created[0] == created[1] > 0


@pytest.mark.parametrize("latest", [2, 3])
def test_report_before_is_read_when_its_writer_was_killed_halfway(latest: int) -> None:
    place = Place()
    reports = [Report(pid, [], []) for pid in range(latest + 1)]
    for report in reports[1:]:
        place.write(report)
    assert place.read() == reports[latest]
    file = place._files[latest % 2]
    os.pwrite(file, b"\xff", os.fstat(file).st_size - 1)
    assert place.read() == reports[latest - 1]
    place.write(reports[latest])
    assert place.read() == reports[latest]


def test_metrics_of_one_process_are_what_its_registry_has() -> None:
    metrics = Metrics()
    metrics.report()
    assert isinstance(metrics._registry, CollectorRegistry)
    assert metrics.exposition() == generate_latest(metrics._registry)
