"""What goes wrong during a soak, at random: gateways die, the store is lost."""

import os
import signal
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.demo.valkey import EmbeddedValkey
from tests.integration.fleet import Fleet

STOPPED_SECONDS = (0.1, 1.5)
DOWN_SECONDS = (0.0, 1.5)
"""Short enough for leases to live through it, lest a charge be read that a late
settlement will correct."""
GATEWAY_PAUSE_SECONDS = (3.0, 9.0)
STORE_PAUSE_SECONDS = (1.5, 4.0)


@dataclass
class Chaos:
    """Kills gateways, and does to the store what it is allowed to.

    Attributes:
        up: Indices of the gateways that can be asked.
        kills: (gateway, monotonic seconds).
        losses: When the store was there again without its data.
        losses_begun: Counts them from before the data are lost.
        losing: Whether the store may be made to lose its data now.
        done: What was done, by name.
    """

    fleet: Fleet
    store: EmbeddedValkey
    random: Random
    losing: bool
    up: set[int] = field(default_factory=set)
    kills: list[tuple[int, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    losses_begun: int = 0
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.up.update(range(len(self.fleet.gateways)))

    async def run(self) -> None:
        """Go on until cancelled; then everything is up again soon."""
        async with anyio.create_task_group() as loops:
            loops.start_soon(self._kill_gateways)
            loops.start_soon(self._trouble_the_store)

    async def _kill_gateways(self) -> None:
        while True:
            await anyio.sleep(self.random.uniform(*GATEWAY_PAUSE_SECONDS))
            with anyio.CancelScope(shield=True):
                await self._kill(self.random.randrange(len(self.fleet.gateways)))

    async def _kill(self, at: int) -> None:
        gateway = self.fleet.gateways[at]
        self.up.discard(at)
        self.kills.append((at, anyio.current_time()))
        await gateway.kill()
        self.done["kill -9"] += 1
        await gateway.start()
        async with self.fleet.client(at=at) as client:
            await gateway.answers("/healthz", client)
        self.up.add(at)

    async def _trouble_the_store(self) -> None:
        troubles = (self._stop, self._flush_scripts, self._drop_connections)
        losses = (self._flush, self._restart)
        while True:
            await anyio.sleep(self.random.uniform(*STORE_PAUSE_SECONDS))
            some = (*troubles, *losses) if self.losing else troubles
            with anyio.CancelScope(shield=True):
                await self.random.choice(some)()

    async def _stop(self) -> None:
        os.kill(self.store.pid, signal.SIGSTOP)
        await anyio.sleep(self.random.uniform(*STOPPED_SECONDS))
        os.kill(self.store.pid, signal.SIGCONT)
        self.done["store stopped"] += 1

    async def _flush_scripts(self) -> None:
        await self._command("SCRIPT", "FLUSH")
        self.done["scripts flushed"] += 1

    async def _drop_connections(self) -> None:
        await self._command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        self.done["connections dropped"] += 1

    async def _flush(self) -> None:
        self.losses_begun += 1
        await self._command("FLUSHALL")
        self.losses.append(anyio.current_time())
        self.done["flushed"] += 1

    async def _restart(self) -> None:
        self.losses_begun += 1
        os.kill(self.store.pid, signal.SIGKILL)
        await self.store.stop()
        await anyio.sleep(self.random.uniform(*DOWN_SECONDS))
        await self.store.start()
        self.losses.append(anyio.current_time())
        self.done["killed and restarted empty"] += 1

    async def _command(self, *words: str) -> None:
        async with Redis.from_url(self.store.url) as redis:
            try:
                await redis.execute_command(*words)  # type: ignore[no-untyped-call]
            except RedisError as error:  # the next round will tell
                self.done[f"failed: {type(error).__name__}"] += 1
