"""Active probes: is a provider up, asked every two seconds."""

from collections.abc import Awaitable, Callable

import anyio

from gateway.routing.standing import Standing
from streaming.errors import Fault

PROBE_SECONDS = 2.0
MISSES = 2
"""In a row: then the provider counts as down, until it answers again."""

type Probe = Callable[[], Awaitable[int]]
"""Asks the provider's health path; the status, or a fault."""


async def watch(provider: str, probe: Probe, standing: Standing) -> None:
    """Probe for ever, and note what is found."""
    misses = 0
    while True:
        misses = 0 if await _answers(probe) else misses + 1
        if misses == 0 or misses >= MISSES:
            standing.note_health(provider, is_up=misses == 0)
        await anyio.sleep(PROBE_SECONDS)


async def _answers(probe: Probe) -> bool:
    try:
        with anyio.fail_after(PROBE_SECONDS):
            return 200 <= await probe() < 300  # noqa: PLR2004 - a success
    except (Fault, TimeoutError):
        return False
