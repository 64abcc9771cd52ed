"""The ``x-ratelimit-*`` headers, and durations as Go writes them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.ledger import Rate, Refused
from gateway.exchange.rates import go_duration, rate_headers

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.012, "12ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (1.05, "1.05s"),
        (59.999, "59.999s"),
        (60, "1m0s"),
        (90.25, "1m30.25s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (90_061.001, "25h1m1.001s"),
    ],
)
def test_duration_is_written_as_go_does(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


@given(st.floats(0, 1e6))
def test_duration_is_never_shorter_nor_a_millisecond_longer(seconds: float) -> None:
    text = go_duration(seconds)
    assert re.fullmatch(r"(\d+h)?(\d+m)?\d+(\.\d+)?m?s", text)
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", text)
    read = sum(float(number) * UNITS[unit] for number, unit in parts)
    assert seconds - 1e-6 <= read < seconds + 0.001 + 1e-6


def test_headers_tell_of_each_limit_there_is() -> None:
    rates = Refused("tokens", Rate(60, 59, 1.0), Rate(6000, 0, 61.5))
    assert rate_headers(rates) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m1.5s",
    }


def test_headers_are_silent_when_nothing_is_limited() -> None:
    assert rate_headers(Refused("day", None, None)) == {}
