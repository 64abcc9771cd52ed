"""The breaker's table, row by row; time is an argument."""

from gateway.routing.breaker import Breaker, BreakerRule

RULE = BreakerRule(failures=3, window_seconds=10.0, open_seconds=5.0)


def failing(*times: float) -> Breaker:
    breaker = Breaker()
    for now in times:
        breaker = breaker.failed(now, RULE)
    return breaker


def test_breaker_opens_at_the_last_failure_when_enough_come_within_the_window() -> None:
    assert not failing(0.0, 1.0).is_open
    assert failing(0.0, 1.0, 9.9).open_until == 14.9
    assert not failing(0.0, 1.0, 10.1).is_open


def test_breaker_counts_anew_when_the_candidate_has_answered() -> None:
    assert failing(0.0, 1.0).answered() == Breaker()


def test_breaker_admits_one_probe_when_its_time_is_up() -> None:
    breaker = failing(0.0, 0.0, 0.0)
    assert not breaker.admits(4.9)
    assert breaker.admits(5.0)
    probing = breaker.begun()
    assert not probing.admits(6.0)


def test_breaker_opens_again_when_the_probe_fails() -> None:
    probing = failing(0.0, 0.0, 0.0).begun()
    again = probing.failed(6.0, RULE)
    assert again.open_until == 11.0
    assert not again.admits(10.9)
    assert again.admits(11.0)


def test_breaker_closes_when_the_probe_is_answered() -> None:
    assert failing(0.0, 0.0, 0.0).begun().answered().admits(0.0)


def test_breaker_takes_another_probe_when_the_client_of_the_first_left() -> None:
    abandoned = failing(0.0, 0.0, 0.0).begun().abandoned()
    assert abandoned.is_open
    assert abandoned.admits(5.0)


def test_breaker_stays_closed_when_an_attempt_begins() -> None:
    assert Breaker().begun() == Breaker()
