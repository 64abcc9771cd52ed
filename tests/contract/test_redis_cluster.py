"""The Redis ledger on a cluster: moved slots, lost masters, and their replicas."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from time import monotonic

import anyio
import pytest

from gateway.admission.cluster import ClusterStore, NodeUrls
from gateway.admission.ledger import (
    Grant,
    Renewal,
    RenewalState,
    SettleResult,
    Usage,
)
from gateway.admission.redis_ledger import RedisLedger
from gateway.auth.principal import Limits, Principal
from gateway.demo.valkey import EmbeddedValkey
from gateway.errors import InvalidApiKey, StoreUnavailable
from tests.contract.conftest import InstalledRedis
from tests.contract.counts import Counts
from tests.contract.desk import Desk, day_of, hold_of
from tests.contract.ledger_contract import LedgerContract
from tests.contract.redis_cluster import (
    MASTERS,
    SLOTS,
    ClusterNode,
    RedisCluster,
)

pytestmark = pytest.mark.anyio

SERVERS = [EmbeddedValkey, *([InstalledRedis] if shutil.which("redis-server") else [])]
RECOVERY_SECONDS = 10.0
PATIENT_SECONDS = 0.5
"""Longer than a busy machine may delay the reply of a node that is well."""


@pytest.fixture(scope="module", params=SERVERS)
async def cluster(
    request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[RedisCluster]:
    """One for all tests that leave it whole."""
    async with RedisCluster(request.param) as cluster:
        yield cluster


@pytest.fixture(params=SERVERS)
async def mortal(request: pytest.FixtureRequest) -> AsyncIterator[RedisCluster]:
    """One for one test alone, whose nodes may be killed."""
    async with RedisCluster(request.param) as cluster:
        yield cluster


class TestClusterLedger(LedgerContract):
    @pytest.fixture
    async def desk(self, cluster: RedisCluster) -> AsyncIterator[Desk]:
        async with (
            RedisLedger(cluster.url, cluster=True, timeout_seconds=1) as ledger,
            RedisLedger(
                cluster.url, cluster=True, timeout_seconds=1, lease_seconds=-1
            ) as lapsing,
        ):
            yield Desk(ledger, lapsing)


@dataclass
class Work:
    """Exchanges of one key, one after another, and what became of their calls.

    Attributes:
        settled: What was charged, by grant; each was asked for until it was answered.
        failures: When a call found no store.
        slowest: Seconds until a failing call had failed.
    """

    ledger: RedisLedger
    principal: str
    settled: list[tuple[Grant, Usage]] = field(default_factory=list)
    failures: list[float] = field(default_factory=list)
    slowest: float = 0.0
    is_over: bool = False

    async def go_on(self) -> None:
        """Work until it is over."""
        while not self.is_over:
            hold = hold_of(self.principal, 10, 90)
            grant = await self.insist(partial(self.ledger.reserve, hold))
            renewal = Renewal(grant, 64, dispatched=True)
            await self.insist(partial(self.ledger.renew, [renewal]))
            usage = Usage(10, len(self.settled) % 50)
            self.settled.append((grant, usage))
            await self.insist(partial(self.ledger.settle, grant, usage))

    async def insist[T](self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until there is an answer."""
        while True:
            started = monotonic()
            try:
                return await call()
            except StoreUnavailable:
                self.failures.append(started)
                self.slowest = max(self.slowest, monotonic() - started)
                await anyio.sleep(0.01)

    async def audit(self) -> None:
        """Every settlement counts, and counts once."""
        for grant, usage in self.settled:
            await self.ledger.settle(
                grant, usage
            )  # a lost one; no other changes a thing
        total = sum(usage.total for _, usage in self.settled)
        assert day_of(await self.ledger.read(self.principal)) == (total, 0)


async def works(
    ledger: RedisLedger, cluster: RedisCluster, name: str
) -> dict[ClusterNode, Work]:
    """Work for a key at each master."""
    found = {}
    for node in cluster.nodes[:MASTERS]:
        principal = cluster.principal_at(node, name)
        await ledger.seed([Principal(principal, "digest")])
        found[node] = Work(ledger, principal)
    return found


async def test_keys_of_all_masters_are_known_when_the_url_names_one(
    cluster: RedisCluster,
) -> None:
    async with RedisLedger(cluster.url, cluster=True) as ledger:
        names = [cluster.principal_at(one, "all") for one in cluster.nodes[:MASTERS]]
        await ledger.seed([Principal(name, "digest") for name in names])
        assert set(names) <= set(await ledger.known())
        for node, name in zip(cluster.nodes, names, strict=False):
            assert node.client.exists(f"sluice:{{{name}}}:key")


async def test_other_nodes_are_found_when_the_first_in_the_url_is_dead(
    cluster: RedisCluster,
) -> None:
    url = cluster.url.replace("redis://", "redis://127.0.0.1:1,")
    async with RedisLedger(url, cluster=True) as ledger:
        await ledger.ping()


async def test_nodes_are_found_when_they_do_not_announce_their_host(
    cluster: RedisCluster,
) -> None:
    kind = "cluster-preferred-endpoint-type"
    for node in cluster.nodes:
        node.client.config_set(kind, "unknown-endpoint")
    try:
        async with RedisLedger(cluster.url, cluster=True) as ledger:
            working = (await works(ledger, cluster, "nameless")).values()
            for work in working:
                slot = cluster.slot_of(work.principal)
                await ledger.read(work.principal)
                reading = partial(ledger.read, work.principal)
                await move_and_back(cluster, slot, reading)
    finally:
        for node in cluster.nodes:
            node.client.config_set(kind, "ip")


async def move_and_back(
    cluster: RedisCluster, slot: int, call: Callable[[], Awaitable[object]]
) -> None:
    """Move a slot to another master and back again; call once it is there."""
    home = next(node for node in cluster.nodes if node.serves(slot))
    away = cluster.nodes[(cluster.nodes.index(home) + 1) % MASTERS]
    for target in (away, home):
        await cluster.move(slot, target)
        await call()


async def test_no_call_fails_while_a_slot_moves(cluster: RedisCluster) -> None:
    # Longer than a busy machine may delay a reply, for it is not that which is tested.
    async with RedisLedger(cluster.url, cluster=True, timeout_seconds=1) as ledger:
        working = await works(ledger, cluster, "moving")
        work = working[cluster.nodes[0]]
        slot = cluster.slot_of(work.principal)
        async with anyio.create_task_group() as tasks:
            for one in working.values():
                tasks.start_soon(one.go_on)
            for target in (1, 2, 1, 0):
                before = len(work.settled)
                await cluster.move(slot, cluster.nodes[target])
                with anyio.fail_after(RECOVERY_SECONDS):
                    while len(work.settled) < before + 5:  # noqa: ASYNC110 - by others
                        await anyio.sleep(0.01)
            for one in working.values():
                one.is_over = True
        for one in working.values():
            assert one.failures == []
            await one.audit()


async def test_calls_fail_in_time_when_a_move_takes_long(
    cluster: RedisCluster,
) -> None:
    async with RedisLedger(cluster.url, cluster=True) as ledger:
        home, away, _ = cluster.nodes[:MASTERS]
        name = cluster.principal_at(home, "slow")
        await ledger.seed([Principal(name, "digest")])
        grant = await ledger.reserve(hold_of(name))
        slot = cluster.slot_of(name)
        await cluster.begin_move(slot, away)
        home.ask("MIGRATE", "127.0.0.1", away.port, f"sluice:{{{name}}}:key", 0, 1000)
        started = monotonic()
        with pytest.raises(StoreUnavailable):
            await ledger.settle(grant, Usage(10, 5))
        assert 0.19 <= monotonic() - started <= PATIENT_SECONDS
        await cluster.move_keys(slot, home, away)
        await cluster.end_move(slot, home, away)
        assert await ledger.settle(grant, Usage(10, 5)) is SettleResult.SETTLED
        assert day_of(await ledger.read(name)) == (15, 0)
        await cluster.move(slot, home)


async def test_a_key_is_found_when_it_has_moved_before_its_slot(
    cluster: RedisCluster,
) -> None:
    async with RedisLedger(cluster.url, cluster=True) as ledger:
        home, away, _ = cluster.nodes[:MASTERS]
        name = cluster.principal_at(home, "asked")
        await ledger.seed([Principal(name, "digest")])
        slot = cluster.slot_of(name)
        await cluster.begin_move(slot, away)
        await cluster.move_keys(slot, home, away)
        assert await ledger.revoke(name)
        assert await ledger.is_revoked(name)
        await cluster.end_move(slot, home, away)
        with pytest.raises(InvalidApiKey):
            await ledger.reserve(hold_of(name))
        await cluster.move(slot, home)


@pytest.mark.parametrize("harm", ["kill", "stop"])
async def test_everything_settles_once_when_a_master_is_lost_under_load(
    mortal: RedisCluster, harm: str
) -> None:
    victim = mortal.nodes[1]
    counts = Counts()
    async with RedisLedger(
        mortal.url, cluster=True, timeout_seconds=PATIENT_SECONDS, observer=counts
    ) as ledger:
        working = await works(ledger, mortal, "team")
        stricken = working[victim]
        async with anyio.create_task_group() as tasks:
            for one in working.values():
                tasks.start_soon(one.go_on)
            await anyio.sleep(0.3)
            if harm == "kill":
                await mortal.nodes[1].kill()
            else:
                victim.stop()
            with anyio.fail_after(RECOVERY_SECONDS):
                while not stricken.failures:  # noqa: ASYNC110 - of other tasks
                    await anyio.sleep(0.001)
                await ledger.ping()  # the others are well
                before = len(stricken.settled)
                while len(stricken.settled) < before + 20:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            if harm == "stop":
                victim.go_on()  # it takes itself for a master still
                await anyio.sleep(0.3)
            for one in working.values():
                one.is_over = True
        assert stricken.slowest <= 2 * PATIENT_SECONDS
        for one in working.values():
            assert one is stricken or one.failures == []
            await one.audit()
        assert counts.changes == [True, False, True]
        assert counts.losses == []


async def test_keys_of_other_nodes_go_on_while_those_of_one_are_refused_at_once(
    mortal: RedisCluster,
) -> None:
    victim = mortal.nodes[2]
    replica = mortal.replica_of(victim)
    async with RedisLedger(mortal.url, cluster=True) as ledger:
        working = await works(ledger, mortal, "team")
        grants = {
            node: await ledger.reserve(hold_of(work.principal))
            for node, work in working.items()
        }
        renewals = [Renewal(grant, 9, dispatched=True) for grant in grants.values()]
        await replica.kill()
        await victim.kill()
        principals = [Principal(one.principal, "digest") for one in working.values()]
        with pytest.raises(StoreUnavailable):
            await ledger.seed(principals)
        took = []
        for _ in range(20):
            started = monotonic()
            with pytest.raises(StoreUnavailable):
                await ledger.reserve(hold_of(working[victim].principal))
            took.append(monotonic() - started)
        assert min(took) <= 0.001
        states = await ledger.renew(renewals)
        held, unknown = RenewalState.HELD, RenewalState.UNKNOWN
        assert list(states) == [held, held, unknown]
        with pytest.raises(StoreUnavailable):
            await ledger.renew(renewals[2:])
        for node in mortal.nodes[:2]:
            assert await ledger.release(grants[node]) is SettleResult.RELEASED
        await ledger.ping()


async def test_what_a_fail_over_has_lost_is_held_and_settled_again(
    mortal: RedisCluster,
) -> None:
    master = mortal.nodes[0]
    replica = mortal.replica_of(master)
    url = f"redis://{mortal.nodes[1].address}"
    # An election may take more than one round: nothing may expire meanwhile.
    async with RedisLedger(url, cluster=True, lease_seconds=60) as ledger:
        name = mortal.principal_at(master, "team")
        team = Principal(name, "digest", limits=Limits(tokens_per_day=1000))
        await ledger.seed([team])
        kept = await ledger.reserve(hold_of(name, 10, 90))
        assert master.client.wait(1, 1000) == 1
        replica.stop()  # from here on the replica learns nothing
        master.client.client_kill_filter(_type="replica")
        lost = await ledger.reserve(hold_of(name, 10, 90))
        assert await ledger.settle(kept, Usage(10, 20)) is SettleResult.SETTLED
        assert day_of(await ledger.read(name)) == (30, 100)
        await master.kill()
        replica.go_on()
        work = Work(ledger, name)
        with anyio.fail_after(RECOVERY_SECONDS):
            statement = await work.insist(lambda: ledger.read(name))
        assert day_of(statement) == (0, 100)  # of the first alone
        renewal = Renewal(lost, 9, dispatched=True)
        assert list(await ledger.renew([renewal])) == [RenewalState.HELD]
        assert day_of(await ledger.read(name)) == (0, 200)
        assert await ledger.settle(lost, Usage(10, 5)) is SettleResult.SETTLED
        assert await ledger.settle(kept, Usage(10, 20)) is SettleResult.SETTLED
        assert await ledger.settle(kept, Usage(10, 20)) is SettleResult.DUPLICATE
        assert day_of(await ledger.read(name)) == (45, 0)


async def test_a_cluster_is_found_when_it_comes_late_and_asks_for_a_password() -> None:
    (node,) = lone = [RedisCluster().nodes[0]]
    url = f"redis://:secret@{node.address}"
    changes: list[bool] = []
    with node.client:
        async with ClusterStore(url, on_change=changes.append) as store:
            started = monotonic()
            with pytest.raises(StoreUnavailable):
                await store.ping()
            assert monotonic() - started <= PATIENT_SECONDS
            async with lone[0].server:
                node.ask("CONFIG", "SET", "cluster-require-full-coverage", "yes")
                node.ask("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 2)
                node.ask("CONFIG", "SET", "requirepass", "secret")
                await anyio.sleep(1.5)  # longer than until the next probe
                with pytest.raises(StoreUnavailable):  # one slot is not served
                    await store.ping()
                assert changes == []
                node.ask("CLUSTER", "ADDSLOTS", SLOTS - 1)
                await eventually_answers(store)
                assert changes == [True]


async def eventually_answers(store: ClusterStore) -> None:
    """Wait until it is ready."""
    with anyio.fail_after(RECOVERY_SECONDS):
        while True:
            try:
                await store.ping()
            except StoreUnavailable:
                await anyio.sleep(0.02)
            else:
                return


def test_nodes_have_the_login_and_the_query_of_the_seed() -> None:
    urls = NodeUrls.like("rediss://me:p%40ss@a:7000,b/0?ssl_cert_reqs=none")
    assert urls.seeds == (("a", 7000), ("b", 6379))
    assert urls.of(("c", 1)) == "rediss://me:p%40ss@c:1?ssl_cert_reqs=none"
    assert NodeUrls.like("redis://[::1]:7000").of(("::2", 1)) == "redis://[::2]:1"
