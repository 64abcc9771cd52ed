"""How one principal's books are named: keys and windows (``lua/_books.lua``)."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

PREFIX = "sluice:"


@dataclass(frozen=True, slots=True)
class Calendar:
    """The UTC windows of one moment, by the store's clock.

    Attributes:
        day, yesterday: ``YYYYMMDD``.
        month, last_month: ``YYYYMM``.
        day_ends, month_starts, month_ends: Unix seconds.
    """

    day: str
    yesterday: str
    month: str
    last_month: str
    day_ends: int
    month_starts: int
    month_ends: int


def calendar_at(unix_seconds: int) -> Calendar:
    """The windows that hold this moment."""
    now = datetime.fromtimestamp(unix_seconds, UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    first = midnight.replace(day=1)
    next_first = (first + timedelta(days=32)).replace(day=1)
    return Calendar(
        day=f"{midnight:%Y%m%d}",
        yesterday=f"{midnight - timedelta(days=1):%Y%m%d}",
        month=f"{first:%Y%m}",
        last_month=f"{first - timedelta(days=1):%Y%m}",
        day_ends=int((midnight + timedelta(days=1)).timestamp()),
        month_starts=int(first.timestamp()),
        month_ends=int(next_first.timestamp()),
    )


def key_of(principal: str) -> str:
    """The hash of the key itself; the one key of a principal without a TTL."""
    return f"{PREFIX}{{{principal}}}:key"


def principal_of(key: str) -> str:
    """Whose key this is: ``key_of`` the other way round."""
    return key.partition("{")[2].rpartition("}")[0]


def keys_of(principal: str, calendar: Calendar) -> tuple[str, ...]:
    """KEYS of every move: one hash tag, so one slot of a cluster."""
    books = f"{PREFIX}{{{principal}}}"
    return (
        key_of(principal),
        f"{books}:records",
        f"{books}:leases",
        f"{books}:graves",
        f"{books}:rpm",
        f"{books}:tpm",
        f"{books}:day:{calendar.day}",
        f"{books}:day:{calendar.yesterday}",
        f"{books}:month:{calendar.month}",
        f"{books}:month:{calendar.last_month}",
    )
