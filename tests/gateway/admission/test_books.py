"""Which windows a moment belongs to, and how books are named."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.books import calendar_at, keys_of


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("moment", "day", "yesterday", "month", "last_month"),
    [
        ("2026-11-22 12:34:56", "20261122", "20261121", "202611", "202610"),
        ("2026-01-01 00:00:00", "20260101", "20251231", "202601", "202512"),
        ("2025-12-31 23:59:59", "20251231", "20251230", "202512", "202511"),
        ("2028-03-01 00:00:00", "20280301", "20280229", "202803", "202802"),
        ("2028-02-29 08:00:00", "20280229", "20280228", "202802", "202801"),
    ],
)
def test_calendar_names_the_windows_of_a_moment(
    moment: str, day: str, yesterday: str, month: str, last_month: str
) -> None:
    now = calendar_at(at(moment))
    assert (now.day, now.yesterday) == (day, yesterday)
    assert (now.month, now.last_month) == (month, last_month)


@pytest.mark.parametrize(
    ("moment", "day_ends", "month_starts", "month_ends"),
    [
        ("2026-11-22 12:34:56", "2026-11-23", "2026-11-01", "2026-12-01"),
        ("2025-12-31 23:59:59", "2026-01-01", "2025-12-01", "2026-01-01"),
        ("2028-02-01 00:00:00", "2028-02-02", "2028-02-01", "2028-03-01"),
    ],
)
def test_calendar_says_when_windows_end(
    moment: str, day_ends: str, month_starts: str, month_ends: str
) -> None:
    now = calendar_at(at(moment))
    assert now.day_ends == at(day_ends)
    assert (now.month_starts, now.month_ends) == (at(month_starts), at(month_ends))


@given(st.integers(0, 4_000_000_000))
def test_calendar_holds_its_own_moment(seconds: int) -> None:
    now = calendar_at(seconds)
    assert now.day_ends - 86_400 <= seconds < now.day_ends
    assert now.month_starts <= seconds < now.month_ends
    assert calendar_at(now.day_ends).yesterday == now.day
    assert calendar_at(now.month_ends).last_month == now.month


def test_keys_of_a_principal_share_one_hash_tag() -> None:
    keys = keys_of("team-a", calendar_at(0))
    assert len(set(keys)) == len(keys)
    assert all(key.startswith("sluice:{team-a}:") for key in keys)
