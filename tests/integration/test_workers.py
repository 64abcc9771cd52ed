"""``gateway serve --workers 2``: one port, one drain, one set of figures."""

import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import anyio
import pytest

from gateway.api.quota import Quota
from tests.integration.fleet import (
    KEYS_FILE,
    Fleet,
    Key,
    Plan,
    eventually,
    free_port,
)
from tests.integration.gateway_process import GatewayProcess
from tests.integration.raw_client import RawClient, chat

pytestmark = pytest.mark.anyio

DRAIN_SECONDS = 1.0
LEASED_SECONDS = 7.0
"""A lease of 5 s, a sweep, and a busy machine."""
BACK_SECONDS = 2.0
AT_ONCE_SECONDS = 3.0
STREAMS = 24
BRIEF = 10
MODELS = {"brief": "sim-r0-t10-f0", "endless": "sim-r20-t100000-f0"}
PLAN = Plan(
    models=MODELS,
    workers=2,
    keys_file=True,
    unlimited=8,
    server={"drain_seconds": DRAIN_SECONDS},
)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The fleet lives on the loop of all tests."""
    return "asyncio"


@pytest.fixture(scope="module")
async def fleet() -> AsyncIterator[Fleet]:
    async with Fleet(PLAN) as fleet:
        yield fleet


@pytest.fixture
async def gateway(fleet: Fleet) -> GatewayProcess:
    """It has two workers that are ready; it has come back if it has left before."""
    return await with_workers(fleet)


async def with_workers(fleet: Fleet) -> GatewayProcess:
    gateway = fleet.gateways[0]
    if not gateway.is_running:
        await gateway.start()
    async with fleet.client() as client:
        await gateway.answers("/readyz", client)
    await eventually(lambda: ready_workers(gateway), lambda pids: len(pids) == 2, 10)
    return gateway


def workers(gateway: GatewayProcess) -> set[int]:
    """Process ids of its supervisor's children, but for the watchdog of this test."""
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text()
    found = {int(pid) for pid in children.split()}
    return {pid for pid in found if b"lifeline" not in commandline(pid)}


async def ready_workers(gateway: GatewayProcess) -> set[int]:
    await anyio.lowlevel.checkpoint()
    ready = re.findall(r"\[(\d+)\]: Application startup complete", gateway.log)
    return workers(gateway) & set(map(int, ready))


def commandline(pid: int) -> bytes:
    """Empty when it is gone, also when nobody has taken note of its end."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


async def are_gone(pids: set[int]) -> bool:
    await anyio.lowlevel.checkpoint()
    return not any(map(commandline, pids))


@asynccontextmanager
async def streaming(fleet: Fleet, key: Key) -> AsyncIterator[Sequence[RawClient]]:
    """Streams that have begun, and are read to their ends."""
    clients = [RawClient(fleet, key, uuid4().hex) for _ in range(STREAMS)]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(listen, client)
        assert await eventually(lambda: have_begun(clients), bool, within_seconds=10)
        yield clients
        tasks.cancel_scope.cancel()


async def listen(client: RawClient) -> None:
    async with client:
        await client.ask("endless", max_tokens=100_000)
        await client.read_to_end()


async def have_begun(clients: Sequence[RawClient]) -> bool:
    await anyio.lowlevel.checkpoint()
    return all(b"river" in client.body for client in clients)


async def growing(clients: Sequence[RawClient]) -> int:
    """How many of the streams still bring something."""
    before = [len(client.body) for client in clients]
    await anyio.sleep(0.2)
    return sum(
        len(client.body) > length
        for client, length in zip(clients, before, strict=True)
    )


async def are_growing(clients: Sequence[RawClient], expected: int) -> int:
    """How many still grow, once those of a dead worker have been read to their ends."""
    return await eventually(lambda: growing(clients), lambda found: found == expected)


async def metric(fleet: Fleet, name: str) -> int:
    return (await fleet.metric(f"gateway_{name}"))[""]


async def gauge(fleet: Fleet, name: str, expected: int) -> int:
    """A gauge, as soon as it is as expected."""
    return await eventually(lambda: metric(fleet, name), lambda n: n == expected)


async def completed(fleet: Fleet) -> int:
    return (await fleet.outcomes("brief"))["completed"]


async def test_killed_worker_is_replaced_and_takes_only_its_own_streams(
    fleet: Fleet, gateway: GatewayProcess
) -> None:
    key = fleet.new_key()
    before = await completed(fleet)
    for _ in range(BRIEF):
        async with fleet.client(key) as client:
            answer = await client.post("/v1/chat/completions", json=chat("brief"))
            assert answer.status_code == 200
    assert await eventually(
        lambda: completed(fleet), lambda n: n >= before + BRIEF
    ) == (before + BRIEF)
    async with streaming(fleet, key) as clients:
        assert await gauge(fleet, "active_streams", STREAMS) == STREAMS
        assert await gauge(fleet, "reservations_open", STREAMS) == STREAMS
        both = workers(gateway)
        os.kill(min(both), signal.SIGKILL)
        killed_at = anyio.current_time()
        left = await eventually(
            lambda: metric(fleet, "active_streams"), lambda n: n < STREAMS
        )
        assert 0 < left < STREAMS
        assert await are_growing(clients, left) == left
        while anyio.current_time() < killed_at + BACK_SECONDS:
            assert await completed(fleet) == before + BRIEF
            assert await gauge(fleet, "reservations_open", left) == left
        (new,) = await ready_workers(gateway) - both
        held = await eventually(
            lambda: fleet.quota(key),
            lambda quota: len(quota["reservations"]) == left,
            LEASED_SECONDS,
        )
        assert len(held["reservations"]) == left
        assert await are_growing(clients, left) == left
        assert workers(gateway) == both - {min(both)} | {new}
    await check_nothing_is_held(fleet, key)


async def check_nothing_is_held(fleet: Fleet, key: Key) -> None:
    async def quota() -> Quota:
        return await fleet.quota(key)

    found = await eventually(quota, lambda quota: not quota["reservations"])
    assert (found["reservations"], found["windows"][0]["reserved"]) == ([], 0)
    assert await gauge(fleet, "active_streams", 0) == 0


async def test_keys_are_read_again_by_every_worker_on_hangup(
    fleet: Fleet, gateway: GatewayProcess
) -> None:
    removed = fleet.new_key()
    before = gateway.log.count("document is taken")
    kept = [key for key in fleet.keys if key != removed]
    path = anyio.Path(fleet.directory / KEYS_FILE)
    await path.write_text(fleet.keys_document(kept))
    gateway.hang_up()

    async def taken() -> int:
        await anyio.lowlevel.checkpoint()
        return gateway.log.count("document is taken") - before

    assert await eventually(taken, lambda n: n == 2) == 2
    async with anyio.create_task_group() as tasks:
        for _ in range(STREAMS):
            tasks.start_soon(check_refused, fleet, removed)
    await path.write_text(fleet.keys_document(fleet.keys))
    gateway.hang_up()
    assert await eventually(taken, lambda n: n == 4) == 4


async def check_refused(fleet: Fleet, key: Key) -> None:
    async with fleet.client(key) as client:
        assert (await client.get("/v1/quota")).status_code == 401


async def test_workers_drain_together_though_each_is_told_twice(
    fleet: Fleet, gateway: GatewayProcess
) -> None:
    key = fleet.new_key()
    both = workers(gateway)
    async with streaming(fleet, key) as clients:
        gateway.signal(signal.SIGTERM)
        left_at = anyio.current_time()
        await anyio.sleep(0.2)
        for pid in both:  # as by a service manager that tells the whole group
            os.kill(pid, signal.SIGTERM)
        async with anyio.create_task_group() as tasks:
            for _ in range(STREAMS // 2):
                tasks.start_soon(check_leaving, fleet, key)
        assert await gateway.ended() == 0
        assert anyio.current_time() - left_at >= DRAIN_SECONDS
        assert await eventually(lambda: are_complete(clients), bool)
    for client in clients:
        last = client.body.split(b"\n\n")[-2]
        error = json.loads(last.removeprefix(b"data: "))["error"]
        assert error["code"] == "gateway_draining"
    assert await is_refused(gateway)
    assert not any(map(commandline, both))


async def is_refused(gateway: GatewayProcess) -> bool:
    """Whether nobody listens there any more."""
    try:
        stream = await anyio.connect_tcp(*gateway.address)
    except OSError:
        return True
    await stream.aclose()
    return False


async def check_leaving(fleet: Fleet, key: Key) -> None:
    async with fleet.client(key) as client:
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["draining"])
        refused = await client.post("/v1/chat/completions", json=chat("brief"))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "gateway_draining"


async def are_complete(clients: Sequence[RawClient]) -> bool:
    await anyio.lowlevel.checkpoint()
    return all(client.complete for client in clients)


async def test_second_signal_ends_all_at_once_and_leaves_the_leases(
    fleet: Fleet, gateway: GatewayProcess
) -> None:
    key = fleet.new_key()
    both = workers(gateway)
    async with streaming(fleet, key):
        gateway.signal(signal.SIGTERM)
        await anyio.sleep(0.2)
        gateway.signal(signal.SIGTERM)
        with anyio.fail_after(AT_ONCE_SECONDS):
            assert await gateway.ended() == 1
    assert not any(map(commandline, both))
    await with_workers(fleet)
    assert (await fleet.quota(key))["reservations"]
    held = await eventually(
        lambda: fleet.quota(key),
        lambda quota: not quota["reservations"],
        LEASED_SECONDS,
    )
    assert held["reservations"] == []


async def test_workers_die_with_their_supervisor(
    fleet: Fleet, gateway: GatewayProcess
) -> None:
    both = workers(gateway)
    assert len(both) == 2
    await gateway.kill()
    assert await eventually(lambda: are_gone(both), bool)
    assert await eventually(lambda: is_refused(gateway), bool)


async def test_every_line_of_the_log_tells_its_process(
    fleet: Fleet, gateway: GatewayProcess
) -> None:
    lines = gateway.log.splitlines()
    assert [line for line in lines if not re.search(r" [\w.]+\[\d+\]: ", line)] == []


async def test_taken_port_is_named_and_nothing_is_started(
    fleet: Fleet, gateway: GatewayProcess
) -> None:
    port = gateway.address[1]
    config = str(fleet.directory / "gateway.json")
    where = ("--config", config, "--port", str(port), "--workers", "2")
    failed = await anyio.run_process(
        fleet.command("serve", *where),
        env=fleet.environment,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    assert failed.returncode == 1
    assert f"127.0.0.1', {port}" in failed.stderr.decode()
    assert "started" not in failed.stderr.decode()


async def test_figures_of_all_workers_have_one_port_of_their_own() -> None:
    port = free_port()
    plan = Plan(models=MODELS, workers=2, extra={"telemetry": {"metrics_port": port}})
    async with Fleet(plan) as fleet:
        gateway = await with_workers(fleet)
        async with fleet.client(fleet.new_key()) as client:
            assert (await client.get("/metrics")).status_code == 404
            first = min(workers(gateway))  # it has that port
            before = gateway.log.count("startup complete")
            os.kill(first, signal.SIGKILL)
            url = f"http://127.0.0.1:{port}/metrics"

            async def is_back() -> bool:
                await anyio.lowlevel.checkpoint()
                return gateway.log.count("startup complete") > before

            assert await eventually(is_back, bool)
            text = (await client.get(url)).raise_for_status().text
    assert "gateway_active_streams 0.0" in text
