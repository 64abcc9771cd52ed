"""Embeddings of a vLLM made for them: the vectors are its own, and so is the usage."""

import base64
import struct
from collections.abc import AsyncIterator, Iterator

import pytest
from openai import AsyncOpenAI, BadRequestError

from tests.integration.fleet import Fleet, Key, running
from tests.real.adapters import through_both
from tests.real.engine import listed_model
from tests.real.given import given
from tests.real.real_server import RealServer, started

pytestmark = [pytest.mark.real, pytest.mark.anyio]

FLAGS = ("--runner", "pooling", "--convert", "embed")
INPUTS: dict[str, str | list[str] | list[int] | list[list[int]]] = {
    "a text": "The lock is full.",
    "texts": ["The lock is full.", "A weir"],
    "token ids": [5, 6, 7],
    "lists of token ids": [[5, 6, 7], [8, 9]],
}


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with started(given("SLUICE_REAL_VLLM"), *FLAGS) as server:
        yield server


@pytest.fixture(scope="module")
def upstream_model(server: RealServer) -> str:
    return listed_model(server.url)[0]


@pytest.fixture(scope="module")
def fleet(server: RealServer, upstream_model: str) -> Iterator[Fleet]:
    with running(through_both(server.url, upstream_model)) as fleet:
        yield fleet


@pytest.fixture
async def direct(server: RealServer) -> AsyncIterator[AsyncOpenAI]:
    """The same client, past the gateway."""
    async with AsyncOpenAI(base_url=server.url, api_key="none") as client:
        yield client


@pytest.mark.parametrize("given", INPUTS.values(), ids=INPUTS.keys())
async def test_vectors_and_usage_are_those_of_vllm(
    fleet: Fleet,
    key: Key,
    openai: AsyncOpenAI,
    direct: AsyncOpenAI,
    upstream_model: str,
    adapter: str,
    given: str | list[str] | list[int] | list[list[int]],
) -> None:
    expected = await direct.embeddings.create(
        model=upstream_model, input=given, encoding_format="float"
    )
    seen = await openai.embeddings.create(
        model=adapter, input=given, encoding_format="float"
    )
    assert [one.index for one in seen.data] == [one.index for one in expected.data]
    for one, other in zip(seen.data, expected.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=0.05)
    assert seen.usage == expected.usage
    assert await fleet.used(key) == expected.usage.total_tokens


async def test_vector_is_the_same_when_base64_is_asked_for(
    openai: AsyncOpenAI, adapter: str
) -> None:
    numbers = await openai.embeddings.create(
        model=adapter, input="A weir", encoding_format="float"
    )
    packed = await openai.embeddings.with_raw_response.create(
        model=adapter, input="A weir", encoding_format="base64"
    )
    data = base64.b64decode(packed.http_response.json()["data"][0]["embedding"])
    floats = [number for (number,) in struct.iter_unpack("<f", data)]
    assert floats == pytest.approx(numbers.data[0].embedding, abs=0.05)


async def test_input_is_refused_and_free_when_it_is_longer_than_the_context(
    fleet: Fleet, key: Key, openai: AsyncOpenAI, server: RealServer, adapter: str
) -> None:
    context_tokens = listed_model(server.url)[1]
    with pytest.raises(BadRequestError) as refused:
        await openai.embeddings.create(model=adapter, input="lock " * context_tokens)
    assert refused.value.code == "invalid_request"
    assert await fleet.used(key) == 0
