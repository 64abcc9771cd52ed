"""A gateway on a Redis Cluster, and a master that is killed under its streams."""

from collections.abc import AsyncIterator
from itertools import count
from typing import override

import anyio
import pytest

from tests.contract.redis_cluster import MASTERS, ClusterNode, RedisCluster
from tests.integration.fleet import GATEWAY, Fleet, Key, Plan, eventually
from tests.integration.raw_client import PROMPT_TOKENS, RawClient, chat

pytestmark = pytest.mark.anyio

TOKENS = 200
BRIEF_TOKENS = 10
RECOVERY_SECONDS = 10.0


class OnCluster(Plan):
    """A fleet whose store is a cluster."""

    @override
    def configuration(self, provider: str) -> dict[str, object]:
        return {**super().configuration(provider), "redis": {"cluster": True}}


@pytest.fixture
async def cluster() -> AsyncIterator[RedisCluster]:
    async with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
async def fleet(cluster: RedisCluster) -> AsyncIterator[Fleet]:
    models = {"long": f"sim-r50-t{TOKENS}-f0", "brief": f"sim-r0-t{BRIEF_TOKENS}-f0"}
    async with Fleet(OnCluster(models=models, store_url=cluster.url)) as fleet:
        yield fleet


async def test_streams_live_and_settle_when_a_master_is_killed(
    cluster: RedisCluster, fleet: Fleet
) -> None:
    await eventually(lambda: status_of(fleet), lambda status: status == 200)
    home, victim, _ = cluster.nodes[:MASTERS]
    calm, stricken = key_at(home, cluster, fleet), key_at(victim, cluster, fleet)
    async with (
        RawClient(fleet, calm, "calm") as one,
        RawClient(fleet, stricken, "stricken") as other,
    ):
        for client in (one, other):
            await client.ask("long")
            await client.read_until(b'"content"')
        await victim.kill()
        refused = await eventually(lambda: ask(fleet, stricken), lambda s: s != 200)
        assert (refused, await ask(fleet, calm)) == (503, 200)
        assert await status_of(fleet) == 200
        for client in (one, other):
            await client.read_to_end()
            assert client.complete
            assert client.tokens == TOKENS
    again = await eventually(
        lambda: ask(fleet, stricken), lambda status: status == 200, RECOVERY_SECONDS
    )
    assert again == 200
    both = TOKENS + BRIEF_TOKENS + 2 * PROMPT_TOKENS
    assert [await fleet.used(key) for key in (calm, stricken)] == [both, both]
    assert stricken.id in await listed_keys(fleet)


async def test_exchange_is_charged_once_by_a_gateway_on_a_cluster(fleet: Fleet) -> None:
    await eventually(lambda: status_of(fleet), lambda status: status == 200)
    keys = [fleet.new_key() for _ in range(2 * MASTERS)]
    for key in keys:
        assert await ask(fleet, key) == 200
    charged = {await fleet.used(key) for key in keys}
    assert charged == {BRIEF_TOKENS + PROMPT_TOKENS}


def key_at(node: ClusterNode, cluster: RedisCluster, fleet: Fleet) -> Key:
    """A key whose books are at this master."""
    keys = (fleet.new_key() for _ in count())
    return next(key for key in keys if cluster.owner_of(key.id) is node)


async def status_of(fleet: Fleet) -> int:
    """Of ``/readyz``."""
    async with fleet.client() as client:
        return (await client.get("/readyz")).status_code


async def ask(fleet: Fleet, key: Key) -> int:
    """Of a short exchange, read to its end."""
    async with fleet.client(key) as client:
        answer = await client.post("/v1/chat/completions", json=chat("brief"))
        return answer.status_code


async def listed_keys(fleet: Fleet) -> str:
    """What ``gateway keys list`` prints."""
    configuration = str(fleet.directory / "gateway.json")
    ran = await anyio.run_process(
        [str(GATEWAY), "keys", "list", "--config", configuration],
        env={"REDIS_URL": fleet.store_url},
    )
    return ran.stdout.decode()
