"""Keys on a live fleet of two gateways: revoked, restored, and read anew."""

import json
import subprocess
from collections.abc import AsyncIterator, Sequence
from uuid import uuid4

import anyio
import httpx
import pytest

from gateway.auth.principal import Limits
from gateway.demo.valkey import EmbeddedValkey
from tests.integration.fleet import (
    KEYS_FILE,
    Fleet,
    Key,
    Plan,
    Terms,
    eventually,
    free_port,
)
from tests.integration.raw_client import PROMPT_TOKENS, RawClient, chat

pytestmark = pytest.mark.anyio

GATEWAYS = range(2)
OUTCOMES = "gateway_exchanges_total"
ENDED_SECONDS = 5.0
RELOADED_SECONDS = 2.0
TOKENS = 10
MODELS = {"brief": f"sim-r0-t{TOKENS}-f0", "endless": "sim-r50-t100000-f0"}
SHORT_ANSWERS = Terms(Limits(max_output_tokens=5))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The fleet lives on the loop of all tests."""
    return "asyncio"


@pytest.fixture(scope="module")
async def fleet() -> AsyncIterator[Fleet]:
    async with EmbeddedValkey(port=free_port()) as store:
        plan = Plan(
            models=MODELS,
            gateways=len(GATEWAYS),
            store_url=store.url,
            keys_file=True,
            unlimited=12,
            terms=(SHORT_ANSWERS,),
        )
        async with Fleet(plan) as fleet:
            for at in GATEWAYS:
                async with fleet.client(at=at) as client:
                    await fleet.gateways[at].answers("/readyz", client)
            yield fleet


async def keys(
    fleet: Fleet, *arguments: str, store_url: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run ``gateway keys``, as somebody with access to the store does."""
    url = fleet.store_url if store_url is None else store_url
    return await anyio.run_process(
        fleet.command("keys", *arguments),
        env={**fleet.environment, "REDIS_URL": url},
        check=False,
    )


def cells(listing: bytes, key: Key) -> list[str]:
    """The line of a key."""
    lines = [line.split() for line in listing.decode().splitlines()]
    (line,) = [line for line in lines if line[0] == key.id]
    return line


async def ask(fleet: Fleet, key: Key, at: int = 0, **members: object) -> httpx.Response:
    body = {**chat("brief"), **members}
    async with fleet.client(key, at) as client:
        return await client.post("/v1/chat/completions", json=body)


async def statuses(fleet: Fleet, key: Key) -> list[int]:
    """How each gateway answers this key."""
    return [(await ask(fleet, key, at)).status_code for at in GATEWAYS]


async def test_revoked_key_is_refused_everywhere_and_its_streams_end(
    fleet: Fleet,
) -> None:
    key = fleet.new_key()
    streams = [RawClient(fleet, key, uuid4().hex, at) for at in GATEWAYS]
    before = [await fleet.metric(OUTCOMES, "outcome", at) for at in GATEWAYS]
    async with anyio.create_task_group() as tasks:
        for stream in streams:
            tasks.start_soon(listen, stream)
        await eventually(lambda: have_begun(streams), bool)
        assert cells((await keys(fleet, "list")).stdout, key)[:3] == [
            key.id,
            "active",
            "2",
        ]
        revoked = await keys(fleet, "revoke", key.id)
        revoked_at = anyio.current_time()
        assert (revoked.returncode, revoked.stdout) == (
            0,
            f"{key.id} is revoked\n".encode(),
        )
        assert await statuses(fleet, key) == [401, 401]
    assert anyio.current_time() - revoked_at < ENDED_SECONDS
    for at, stream in enumerate(streams):
        last = stream.body.split(b"\n\n")[-2]
        error = json.loads(last.removeprefix(b"data: "))["error"]
        assert (stream.status, error["code"]) == (200, "invalid_api_key")
        assert await fleet.metric(OUTCOMES, "outcome", at) - before[at] == {
            "rejected": 1
        }
    await check_settled(fleet, key, streams)


async def listen(stream: RawClient) -> None:
    async with stream:
        await stream.ask("endless", max_tokens=100_000)
        await stream.read_to_end()


async def have_begun(streams: Sequence[RawClient]) -> bool:
    await anyio.lowlevel.checkpoint()
    return all(b"river" in stream.body for stream in streams)


async def check_settled(fleet: Fleet, key: Key, streams: Sequence[RawClient]) -> None:
    """Charged is what was generated; the revoked key itself may not ask."""
    _, day, _ = (await keys(fleet, "usage", key.id)).stdout.splitlines()
    who, window, used, held, limit = day.decode().split()
    relayed = sum(stream.tokens for stream in streams)
    sent = sum([(await fleet.attempt(one.request_id)).tokens for one in streams])
    assert (who, window, held, limit) == (key.id, "day", "0", "unlimited")
    prompts = PROMPT_TOKENS * len(streams)
    assert prompts + relayed <= int(used) <= prompts + sent


async def test_restart_does_not_lift_a_revocation_but_restore_does(
    fleet: Fleet,
) -> None:
    key = fleet.new_key()
    assert await statuses(fleet, key) == [200, 200]
    assert (await keys(fleet, "revoke", key.id)).returncode == 0
    gateway = fleet.gateways[1]
    await gateway.stop()
    await gateway.start()
    async with fleet.client(at=1) as client:
        await gateway.answers("/readyz", client)
    assert await statuses(fleet, key) == [401, 401]
    restored = await keys(fleet, "restore", key.id)
    assert restored.stdout == f"{key.id} is restored\n".encode()
    assert await statuses(fleet, key) == [200, 200]


async def test_commands_fail_when_the_key_is_unknown(fleet: Fleet) -> None:
    async def fail(command: str) -> None:
        failed = await keys(fleet, command, "nobody")
        assert (failed.returncode, failed.stdout) == (1, b"")
        assert failed.stderr.startswith(b"no such key")

    async with anyio.create_task_group() as tasks:
        for command in ("revoke", "restore", "usage"):
            tasks.start_soon(fail, command)


async def test_command_fails_when_the_store_is_down(fleet: Fleet) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}"
    failed = await keys(fleet, "list", store_url=nowhere)
    assert (failed.returncode, failed.stdout) == (1, b"")
    assert failed.stderr.endswith(b"the quota store cannot be reached\n")


async def test_keys_file_is_read_again_on_hangup(fleet: Fleet) -> None:
    removed, changed = fleet.new_key(), fleet.new_key(SHORT_ANSWERS)
    added = Key("added", fleet.new_key().secret, Terms())
    raised = Key(changed.id, changed.secret, Terms(Limits(tokens_per_day=40)))
    assert (await ask(fleet, changed, max_tokens=6)).status_code == 400
    assert await statuses(fleet, removed) == [200, 200]
    kept = [
        one
        for one in fleet.keys
        if one.secret not in {removed.secret, added.secret, changed.secret}
    ]
    await reload(fleet, fleet.keys_document([*kept, added, raised]), "is taken")
    assert await statuses(fleet, removed) == [401, 401]
    assert await statuses(fleet, added) == [200, 200]
    assert (await ask(fleet, changed, max_tokens=6)).status_code == 200
    refused = await ask(fleet, changed, at=1, max_tokens=30)
    assert refused.json()["error"]["code"] == "insufficient_quota"


async def test_broken_keys_file_keeps_the_keys_and_says_so(fleet: Fleet) -> None:
    key = fleet.new_key()
    good = await anyio.Path(fleet.directory / KEYS_FILE).read_text()
    await reload(fleet, '{"keys": [{"id": "x"}]}', "keys.0.digest: required")
    assert await statuses(fleet, key) == [200, 200]
    await reload(fleet, good[:-1], "the keys document is not taken: keys: line 1")
    assert await statuses(fleet, key) == [200, 200]


async def reload(fleet: Fleet, document: str, said: str) -> None:
    """Have all gateways read this document, and wait for what they say."""
    await anyio.Path(fleet.directory / KEYS_FILE).write_text(document)
    before = [gateway.log.count(said) for gateway in fleet.gateways]
    for gateway in fleet.gateways:
        gateway.hang_up()

    async def news() -> bool:
        await anyio.lowlevel.checkpoint()
        now = [gateway.log.count(said) for gateway in fleet.gateways]
        return all(new > old for new, old in zip(now, before, strict=True))

    assert await eventually(news, bool, RELOADED_SECONDS)
