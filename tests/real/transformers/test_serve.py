"""``transformers serve``: no ``[DONE]``, usage in the finish chunk, string errors."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import anyio
import pytest

from tests.integration.fleet import Fleet, Key, eventually, running
from tests.integration.raw_client import Leave, RawClient
from tests.real.adapters import through_both
from tests.real.given import given
from tests.real.real_server import RealServer, started, starting

pytestmark = [pytest.mark.real, pytest.mark.anyio]

LONG = {"max_tokens": 1500, "temperature": 0}  # which it does not end by itself
SHORT = {"max_tokens": 12}
WITH_USAGE = {"stream_options": {"include_usage": True}}
IDLE_SECONDS = 0.5
"""Who has used next to no processor time for so long generates nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with started(given("SLUICE_REAL_TRANSFORMERS")) as server:
        yield server


@pytest.fixture(scope="module")
def fleet(server: RealServer) -> Iterator[Fleet]:
    with running(through_both(server.url, given("SLUICE_REAL_MODEL"))) as fleet:
        yield fleet


@asynccontextmanager
async def asking(
    fleet: Fleet, key: Key, adapter: str, **members: object
) -> AsyncIterator[RawClient]:
    """A client that asks for a stream."""
    async with RawClient(fleet, key, uuid4().hex) as client:
        await client.ask(adapter, **members)
        yield client


def events(client: RawClient) -> list[dict[str, object]]:
    """All events; they must be whole, and JSON."""
    *whole, nothing = bytes(client.body).split(b"\n\n")
    assert nothing == b""
    return [json.loads(event.removeprefix(b"data: ")) for event in whole]


async def test_stream_succeeds_without_done_and_is_charged_its_usage(
    fleet: Fleet, key: Key, adapter: str
) -> None:
    before = await fleet.outcomes(adapter)
    async with asking(fleet, key, adapter, **SHORT, **WITH_USAGE) as client:
        await client.read_to_end()
    assert client.complete
    usages = [event["usage"] for event in events(client) if event.get("usage")]
    assert usages == [events(client)[-1]["usage"]]
    assert usages[0]["completion_tokens"] == 12  # type: ignore[index]
    assert await fleet.used(key) == usages[0]["total_tokens"]  # type: ignore[index]
    assert await fleet.outcomes_since(adapter, before) == {"completed": 1}


async def test_finish_is_shown_without_its_usage_when_that_was_not_asked_for(
    fleet: Fleet, key: Key, adapter: str
) -> None:
    async with asking(fleet, key, adapter, **SHORT) as client:
        await client.read_to_end()
    assert client.complete
    assert b'"finish_reason":"length"' in client.body
    assert not any("usage" in event for event in events(client))
    assert await fleet.used(key) > 12


@pytest.mark.parametrize("stream", [True, False])
async def test_request_is_refused_in_our_envelope_when_the_error_is_a_string(
    fleet: Fleet, key: Key, adapter: str, stream: bool
) -> None:
    async with asking(fleet, key, adapter, stream=stream, no_such_field=1) as client:
        await client.read_to_end()
    error = json.loads(client.body)["error"]
    assert (client.status, error["code"]) == (422, "invalid_request")
    assert "no_such_field" in error["message"]
    assert await fleet.used(key) == 0


@pytest.mark.parametrize("how", Leave)
async def test_generation_ends_and_is_charged_when_the_client_leaves(
    fleet: Fleet, key: Key, server: RealServer, adapter: str, how: Leave
) -> None:
    before = await fleet.outcomes(adapter)
    async with asking(fleet, key, adapter, **LONG) as client:
        while client.body.count(b"\n\n") < 20:
            await client.read()
        day = await fleet.day(key)
        await client.leave(how)
        load = await eventually(lambda: load_of(server), lambda load: load < 0.1)
        used = await fleet.used(key)
    print(f"{adapter}, {how.value}: load {load:.2f}, charged {used}")
    assert load < 0.1
    assert 0 < used < day["reserved"]
    assert await fleet.outcomes_since(adapter, before) == {"client_disconnect": 1}


async def test_stream_ends_in_an_error_when_the_server_is_killed(adapter: str) -> None:
    async with (
        starting(given("SLUICE_REAL_TRANSFORMERS")) as server,
        Fleet(through_both(server.url, given("SLUICE_REAL_MODEL"))) as fleet,
    ):
        key = fleet.new_key()
        async with asking(fleet, key, adapter, **LONG) as client:
            await client.read_until(b'"content"')
            await server.kill()
            await client.read_to_end()
        *answers, last = events(client)
        assert client.complete
        assert all("choices" in answer for answer in answers)
        assert last["error"]["code"] == "upstream_truncated"  # type: ignore[index]
        assert await fleet.used(key) > 0
        assert await fleet.outcomes(adapter) == {"upstream_truncated": 1}


async def load_of(server: RealServer) -> float:
    """Share of a processor that it used just now (Linux)."""
    before = processor_seconds(server)
    await anyio.sleep(IDLE_SECONDS)
    return (processor_seconds(server) - before) / IDLE_SECONDS


def processor_seconds(server: RealServer) -> float:
    status = Path(f"/proc/{server.pid}/stat").read_text("ascii").rpartition(")")[2]
    user, system = status.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
