"""Keys on a live fleet: what the store knows of them, and their revocation."""

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import anyio

from gateway.admission.ledger import Statement
from gateway.admission.redis_ledger import RedisLedger
from gateway.cli.console import fail
from gateway.errors import InvalidApiKey, StoreUnavailable
from gateway.settings import DocumentError, RedisSettings, load_settings, redis_url

_TIMEOUT_SECONDS = 2.0
"""A person waits longer than a request may."""


def on_store[T](config: Path | None, ask: Callable[[RedisLedger], Awaitable[T]]) -> T:
    """Ask the store named by ``REDIS_URL``, or by a configuration; exits 1 without.

    Args:
        config: The configuration file, if one was named.
        ask: What to ask of the ledger.
    """
    try:
        redis = RedisSettings() if config is None else load_settings(config).redis
        url = redis_url(redis)
    except DocumentError as error:
        fail(error.mistakes)

    async def asked() -> T:
        async with RedisLedger(
            url, cluster=redis.cluster, timeout_seconds=_TIMEOUT_SECONDS
        ) as ledger:
            return await ask(ledger)

    try:
        return anyio.run(asked)
    except* StoreUnavailable:
        fail(["the quota store cannot be reached"])
    except* InvalidApiKey:
        fail(["no such key"])


async def statements(ledger: RedisLedger, ids: Iterable[str]) -> list[Statement]:
    """A read-out of each of these keys, or of all keys the store knows."""
    known = list(ids) or await ledger.known()
    return [await ledger.read(one) for one in known]


def table(rows: Iterable[tuple[str, ...]]) -> Iterable[str]:
    """The rows as lines, their columns aligned."""
    listed = list(rows)
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    for row in listed:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def listing(found: Iterable[Statement]) -> Iterable[tuple[str, ...]]:
    """One line a key: state, and tokens of the day and the month."""
    yield "KEY", "STATE", "IN USE", "DAY", "OF", "MONTH", "OF"
    for one in found:
        state = "revoked" if one.revoked else "active"
        windows = [
            cell
            for window in one.windows
            for cell in (str(window.used), _limit(window.limit))
        ]
        yield one.principal, state, str(one.in_use), *windows


def usage(found: Iterable[Statement]) -> Iterable[tuple[str, ...]]:
    """One line a key and window: tokens used, held, and the limit."""
    yield "KEY", "WINDOW", "USED", "RESERVED", "LIMIT"
    for one in found:
        for window in one.windows:
            figures = (str(window.used), str(window.reserved), _limit(window.limit))
            yield one.principal, window.name, *figures


def _limit(limit: int | None) -> str:
    return "unlimited" if limit is None else str(limit)
