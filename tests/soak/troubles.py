"""What befalls a house besides: its store, its network, and the host of a gateway."""

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import anyio

from tests.integration import test_store_outages as outages
from tests.integration.fault_proxy import FaultProxy
from tests.integration.fleet import Key
from tests.soak.matrix import House

STORE_SECONDS = (0.1, 1.0)
NETWORK_SECONDS = (0.1, 0.8)


@dataclass(frozen=True)
class Trouble:
    """One kind.

    Attributes:
        happen: From its beginning to its end; the gateway with that number is meant.
        of_host: It befalls that gateway.
        of_network: It befalls all who ask the provider behind the network.
        kills: The gateway dies.
        forgets: The store's data are lost.
    """

    happen: Callable[[House, Random, int], Awaitable[None]]
    of_host: bool = False
    of_network: bool = False
    kills: bool = False
    forgets: bool = False


async def _nothing(_: House, __: Random, ___: int) -> None:
    await anyio.lowlevel.checkpoint()


async def _outage(
    house: House, random: Random, _: int, *, row: outages.Trouble, nobody: Key
) -> None:
    those = outages.House(house.fleet, house.store, nobody)
    await row.begin(those)
    await anyio.sleep(random.uniform(*STORE_SECONDS))
    await row.end(those)


async def _silence(proxy: FaultProxy, seconds: float) -> None:
    proxy.hold()
    await anyio.sleep(seconds)
    proxy.release()


async def _slowness(proxy: FaultProxy, seconds: float) -> None:
    proxy.delay_seconds = 0.03
    await anyio.sleep(seconds)
    proxy.delay_seconds = 0.0


async def _loss(proxy: FaultProxy, seconds: float) -> None:
    proxy.drops_replies = True
    await anyio.sleep(seconds)
    proxy.drops_replies = False


async def _cut(proxy: FaultProxy, seconds: float) -> None:
    proxy.resets = seconds > sum(STORE_SECONDS) / 2
    await proxy.cut()


async def _refusal(proxy: FaultProxy, seconds: float) -> None:
    await proxy.refuse()
    await anyio.sleep(seconds)
    await proxy.accept()


async def _of_line(
    house: House,
    random: Random,
    _: int,
    *,
    fails: Callable[[FaultProxy, float], Awaitable[None]],
) -> None:
    await fails(house.line, random.uniform(*STORE_SECONDS))


async def _of_network(
    house: House,
    random: Random,
    _: int,
    *,
    fails: Callable[[FaultProxy, float], Awaitable[None]],
) -> None:
    await fails(house.network, random.uniform(*NETWORK_SECONDS))


async def _drain(house: House, _: Random, at: int) -> None:
    gateway = house.fleet.gateways[at]
    gateway.signal(signal.SIGTERM)
    assert await gateway.ended() == 0
    await gateway.start()


async def _kill(house: House, _: Random, at: int) -> None:
    await house.fleet.gateways[at].kill()
    await house.fleet.gateways[at].start()


async def _sleep(house: House, _: Random, at: int, *, seconds: float) -> None:
    gateway = house.fleet.gateways[at]
    gateway.signal(signal.SIGSTOP)
    await anyio.sleep(seconds)
    gateway.signal(signal.SIGCONT)


_LINES = {
    "silent": _silence,
    "slow": _slowness,
    "losing replies": _loss,
    "cut": _cut,
    "refusing": _refusal,
}


def troubles(nobody: Key) -> dict[str, Trouble]:
    """All of them, by name; the key is one that nobody uses."""
    return {
        "none": Trouble(_nothing),
        **{
            f"store {name}": Trouble(
                partial(_outage, row=row, nobody=nobody), forgets=row.forgets
            )
            for name, row in outages.TROUBLES.items()
        },
        **{
            f"line {name}": Trouble(partial(_of_line, fails=fails))
            for name, fails in _LINES.items()
        },
        **{
            f"network {name}": Trouble(
                partial(_of_network, fails=fails), of_network=True
            )
            for name, fails in _LINES.items()
        },
        "drain": Trouble(_drain, of_host=True),
        "kill -9": Trouble(_kill, of_host=True, kills=True),
        "asleep": Trouble(partial(_sleep, seconds=1.0), of_host=True),
        "asleep beyond its leases": Trouble(partial(_sleep, seconds=6.5), of_host=True),
    }
