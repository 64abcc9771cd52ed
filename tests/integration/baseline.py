"""What a gateway holds and costs, to be compared before and after."""

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import anyio

from tests.integration.fleet import Fleet, eventually
from tests.integration.gateway_process import GatewayProcess

HELD = ("active_streams", "reservations_open", "reserved_tokens", "settlement_queue")
_STILL_SECONDS = 0.1


async def held(fleet: Fleet, at: int = 0) -> dict[str, int]:
    """What a gateway has open, but for idle connections to the provider.

    The provider's own view is in it, so with more than one gateway the others must be
    at rest.
    """
    files = open_files(fleet.gateways[at])  # before there is a client that asks
    idle = fleet.provider.open_connections - fleet.provider.in_flight
    found = {
        name: (await fleet.metric(f"gateway_{name}", at=at)).total() for name in HELD
    }
    return {**found, "files": files - idle, "in flight": fleet.provider.in_flight}


async def at_rest[T](read: Callable[[], Awaitable[T]]) -> T:
    """What is read, once it does not change: whoever asked before has gone."""
    before, now = None, await read()
    while before != now:
        await anyio.sleep(_STILL_SECONDS)
        before, now = now, await read()
    return now


async def left_over(
    read: Callable[[], Awaitable[Mapping[str, int]]],
    before: Mapping[str, int],
    within_seconds: float,
) -> dict[str, int]:
    """How much more there is of each than before, as soon as it is nothing."""

    async def more() -> dict[str, int]:
        now = await read()
        return {
            name: now[name] - before[name] for name in now if now[name] > before[name]
        }

    return await eventually(more, lambda found: not found, within_seconds)


def open_files(gateway: GatewayProcess) -> int:
    """How many descriptors its process has (Linux)."""
    return len(list(Path("/proc", str(gateway.pid), "fd").iterdir()))


def cpu_seconds(gateway: GatewayProcess) -> float:
    """What its process has computed so far (Linux)."""
    stat = Path("/proc", str(gateway.pid), "stat").read_text("ascii")
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
