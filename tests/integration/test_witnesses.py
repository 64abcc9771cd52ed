"""Three clients that know nothing of each other see the same of every fault.

A raw socket, the ``openai`` package and ``httpx-sse`` each ask once for every way in
which a provider can fail: they must agree on status, code and text, and see them as the
tables of ``test_faults`` say.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from itertools import product
from typing import NamedTuple
from uuid import uuid4

import anyio
import httpx_sse
import openai
import pytest

from gateway.demo.scenario import Fault
from tests.integration.fleet import Fleet, Plan
from tests.integration.raw_client import RawClient, chat
from tests.integration.test_faults import STREAMED, TOKENS, error_code

pytestmark = pytest.mark.anyio

AT_A_TIME = 12


class Seen(NamedTuple):
    """What one client saw of an answer; ``code`` is empty without an error."""

    status: int
    code: str
    words: str


type Witness = Callable[[Fleet, Fault], Awaitable[Seen]]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    plan = Plan(
        models={fault: f"sim-r0-t{TOKENS}-f0-m1-d0.05-x{fault}" for fault in Fault},
        unlimited=3 * len(Fault),
        streaming={
            "first_byte_seconds": 2,
            "idle_seconds": 2,
            "max_event_bytes": 65_536,
        },
        extra={"routing": {"breaker": {"failures": 1000}}},
    )
    async with Fleet(plan) as fleet:
        yield fleet


async def raw_socket(fleet: Fleet, fault: Fault) -> Seen:
    async with RawClient(fleet, fleet.new_key(), uuid4().hex) as client:
        await client.ask(fault)
        await client.read_to_end()
    assert client.complete
    last = bytes(client.body).rstrip().rpartition(b"\n\n")[2]
    code = error_code(last) if b'"error":' in last else ""
    return Seen(client.status, code, client.text)


def openai_package(client: openai.AsyncOpenAI) -> Witness:
    async def look(fleet: Fleet, fault: Fault) -> Seen:
        words = ""
        try:
            stream = await client.chat.completions.create(
                model=fault, messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            async for chunk in stream:
                # ``data: null`` is one, too, whatever its type says.
                for choice in getattr(chunk, "choices", ()):
                    words += choice.delta.content or ""
        except openai.APIStatusError as error:
            return Seen(error.status_code, str(error.code), words)
        except openai.APIError as error:
            return Seen(200, str(error.code), words)
        except ValueError:
            return Seen(200, "is no JSON", words)
        return Seen(200, "", words)

    return look


async def sse_reader(fleet: Fleet, fault: Fault) -> Seen:
    words = ""
    body = {**chat(fault), "stream": True}
    async with (
        fleet.client(fleet.new_key()) as client,
        httpx_sse.aconnect_sse(
            client, "POST", "/v1/chat/completions", json=body
        ) as source,
    ):
        answer = source.response
        if answer.status_code != 200:
            return Seen(answer.status_code, error_code(await answer.aread()), words)
        async for event in source.aiter_sse():
            document = None
            with suppress(ValueError):  # `[DONE]`, and what is garbage
                document = event.json()
            if not isinstance(document, dict):
                continue
            if "error" in document:
                return Seen(200, error_code(event.data.encode()), words)
            for choice in document["choices"]:
                words += choice["delta"].get("content") or ""
    return Seen(200, "", words)


async def test_clients_agree_on_every_fault(fleet: Fleet) -> None:
    seen: dict[Fault, dict[str, Seen]] = {fault: {} for fault in Fault}
    turn = anyio.CapacityLimiter(AT_A_TIME)

    async def look(fault: Fault, name: str, witness: Witness) -> None:
        async with turn:
            seen[fault][name] = await witness(fleet, fault)

    async with (
        openai.AsyncOpenAI(
            base_url=f"{fleet.base_url}/v1",
            api_key=fleet.new_key().secret,
            max_retries=0,
        ) as client,
        anyio.create_task_group() as tasks,
    ):
        witnesses = {
            "raw socket": raw_socket,
            "openai": openai_package(client),
            "httpx-sse": sse_reader,
        }
        for fault, (name, witness) in product(Fault, witnesses.items()):
            tasks.start_soon(look, fault, name, witness)
    disagreed = {fault: by for fault, by in seen.items() if len(set(by.values())) != 1}
    # Where JSON is due and is none the package fails before it is told.
    assert disagreed.keys() <= {Fault.GARBAGE}
    expected = {fault: (one.status, one.code or "") for fault, one in STREAMED.items()}
    found = {fault: by["raw socket"][:2] for fault, by in seen.items()}
    assert found == expected
