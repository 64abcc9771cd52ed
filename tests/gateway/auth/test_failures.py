import tracemalloc
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.failures import FAILURES_PER_MINUTE, FailedAuthLimiter

STEPS = st.lists(st.integers(0, 20), max_size=300)


def test_limiter_refuses_the_failure_after_the_thirtieth() -> None:
    limiter = FailedAuthLimiter()
    answers = [limiter.note_failure("10.0.0.1", second) for second in range(32)]
    assert answers == [None] * 30 + [30.0, 29.0]


def test_limiter_counts_again_when_the_wait_it_named_is_over() -> None:
    limiter = FailedAuthLimiter()
    for _ in range(FAILURES_PER_MINUTE):
        assert limiter.note_failure("10.0.0.1", 100.5) is None
    wait = limiter.note_failure("10.0.0.1", 130.25)
    assert wait == 30.25
    assert limiter.note_failure("10.0.0.1", 130.25 + wait) is None


@given(STEPS)
def test_limiter_lets_thirty_in_any_minute_and_no_more(steps: list[int]) -> None:
    limiter = FailedAuthLimiter()
    now = 0
    counted: deque[int] = deque()
    for step in steps:
        now += step
        while counted and counted[0] <= now - 60:
            counted.popleft()
        refused = limiter.note_failure("10.0.0.1", now)
        assert (refused is not None) == (len(counted) == FAILURES_PER_MINUTE)
        if refused is None:
            counted.append(now)
        else:
            assert refused == counted[0] + 60 - now


def exhausted(address: str) -> FailedAuthLimiter:
    limiter = FailedAuthLimiter()
    for _ in range(FAILURES_PER_MINUTE):
        limiter.note_failure(address, 0)
    return limiter


def test_limiter_tells_sources_apart() -> None:
    limiter = exhausted("10.0.0.1")
    assert limiter.note_failure("10.0.0.1", 1) is not None
    assert limiter.note_failure("10.0.0.2", 1) is None
    assert limiter.note_failure("", 1) is None


def test_limiter_takes_a_network_of_ipv6_for_one_source() -> None:
    limiter = exhausted("2001:db8:0:1::1")
    assert limiter.note_failure("2001:db8:0:1:ffff::2", 1) is not None
    assert limiter.note_failure("2001:db8:0:2::1", 1) is None


def test_limiter_takes_a_mapped_address_for_the_one_it_maps() -> None:
    limiter = exhausted("::ffff:10.0.0.1")
    assert limiter.note_failure("10.0.0.1", 1) is not None
    assert limiter.note_failure("::ffff:10.0.0.2", 1) is None


def test_limiter_stays_small_when_sources_are_many() -> None:
    limiter = FailedAuthLimiter()
    tracemalloc.start()
    try:
        for number in range(20_000):
            limiter.note_failure(
                f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0
            )
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 8_000_000
    assert limiter.note_failure("10.0.0.0", 1) is None
