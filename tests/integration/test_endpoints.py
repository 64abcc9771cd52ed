"""Completions and embeddings: the same way as a chat, with another prompt."""

import base64
import struct
from collections.abc import AsyncIterator, Iterator

import pytest
from openai import AsyncOpenAI, BadRequestError

from tests.integration.fleet import Fleet, Key, Plan, running

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running(Plan(models={"m": "sim-r0-t12-f0", "slow": "sim-r50-t400-f0"})) as one:
        yield one


@pytest.fixture
def key(fleet: Fleet) -> Key:
    return fleet.new_key()


@pytest.fixture
async def openai(fleet: Fleet, key: Key) -> AsyncIterator[AsyncOpenAI]:
    url = f"{fleet.base_url}/v1"
    async with AsyncOpenAI(base_url=url, api_key=key.secret, max_retries=0) as client:
        yield client


async def test_completion_is_charged_as_the_provider_counts_when_it_is_whole(
    fleet: Fleet, key: Key, openai: AsyncOpenAI
) -> None:
    answer = await openai.completions.create(model="m", prompt="one two three", n=2)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert await fleet.used(key) == answer.usage.total_tokens


async def test_completion_of_several_prompts_is_charged_exactly_when_it_streams(
    fleet: Fleet, key: Key, openai: AsyncOpenAI
) -> None:
    stream = await openai.completions.create(
        model="m",
        prompt=["one two three", "four"],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(usages) == 1
    assert usages[0].completion_tokens == 24
    assert await fleet.used(key) == usages[0].total_tokens


async def test_completion_shows_no_usage_when_none_was_asked_for(
    openai: AsyncOpenAI,
) -> None:
    stream = await openai.completions.create(model="m", prompt="one", stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


async def test_completion_is_charged_what_was_sent_when_the_client_leaves(
    fleet: Fleet, key: Key, openai: AsyncOpenAI
) -> None:
    stream = await openai.completions.create(
        model="slow", prompt=[1, 2, 3], stream=True
    )
    received = 0
    async for _ in stream:
        received += 1
        if received == 5:
            break
    await stream.close()
    assert 3 + received <= await fleet.used(key) < 200


async def test_cap_per_choice_and_prompt_is_reserved_when_a_limit_is_tight(
    fleet: Fleet, openai: AsyncOpenAI
) -> None:
    with pytest.raises(BadRequestError) as refused:
        await openai.completions.create(model="m", prompt="one", max_tokens=0)
    assert refused.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ("one two three", 3),
        (["one two", "three"], 3),
        ([7, 8, 9, 10], 4),
        ([[7, 8], [9]], 3),
    ],
)
async def test_embeddings_are_charged_their_prompt(
    fleet: Fleet, key: Key, openai: AsyncOpenAI, given: list[str], tokens: int
) -> None:
    answer = await openai.embeddings.create(
        model="m", input=given, encoding_format="float"
    )
    assert answer.usage.total_tokens == tokens
    assert len(answer.data[0].embedding) == 8
    assert await fleet.used(key) == tokens


async def test_embeddings_come_as_they_are_when_base64_is_asked_for(
    openai: AsyncOpenAI,
) -> None:
    numbers = await openai.embeddings.create(
        model="m", input="one", encoding_format="float"
    )
    packed = await openai.embeddings.with_raw_response.create(
        model="m", input="one", encoding_format="base64"
    )
    text = packed.http_response.json()["data"][0]["embedding"]
    floats = struct.unpack("<8f", base64.b64decode(text))
    assert floats == pytest.approx(numbers.data[0].embedding)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize(
    "body", [{}, {"model": "m"}, {"model": "m", "prompt": 7, "input": 7}]
)
async def test_request_is_refused_when_there_is_nothing_to_go_on(
    fleet: Fleet, key: Key, path: str, body: dict[str, object]
) -> None:
    async with fleet.client(key) as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"
    assert await fleet.used(key) == 0
