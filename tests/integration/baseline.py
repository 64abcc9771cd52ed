"""What a gateway holds and costs, to be compared before and after."""

import os
from pathlib import Path

from tests.integration.fleet import Fleet
from tests.integration.gateway_process import GatewayProcess

HELD = ("active_streams", "reservations_open", "reserved_tokens", "settlement_queue")


async def held(fleet: Fleet, at: int = 0) -> dict[str, int]:
    """What a gateway has open, but for idle connections to the provider.

    The provider's own view is in it, so with more than one gateway the others must be
    at rest.
    """
    found = {
        name: (await fleet.metric(f"gateway_{name}", at=at)).total() for name in HELD
    }
    idle = fleet.provider.open_connections - fleet.provider.in_flight
    files = open_files(fleet.gateways[at]) - idle
    return {**found, "files": files, "in flight": fleet.provider.in_flight}


def open_files(gateway: GatewayProcess) -> int:
    """How many descriptors its process has (Linux)."""
    return len(list(Path("/proc", str(gateway.pid), "fd").iterdir()))


def cpu_seconds(gateway: GatewayProcess) -> float:
    """What its process has computed so far (Linux)."""
    stat = Path("/proc", str(gateway.pid), "stat").read_text("ascii")
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
