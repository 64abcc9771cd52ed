"""The simulated provider as the official client sees it."""

from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from gateway.demo.attempts import End
from gateway.demo.scenario import SimulatorSettings
from gateway.demo.simulated import SimulatedProvider
from gateway.demo.text import passage

pytestmark = pytest.mark.anyio


@pytest.fixture
async def provider() -> AsyncIterator[SimulatedProvider]:
    settings = SimulatorSettings(rate=0, first_token_ms=0, chunk_tokens=1)
    async with SimulatedProvider(settings) as provider:
        yield provider


@pytest.fixture
async def client(provider: SimulatedProvider) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=provider.base_url, api_key="none", max_retries=0
    ) as client:
        yield client


async def test_chat_stream_says_the_text_when_read_by_the_openai_client(
    client: AsyncOpenAI, provider: SimulatedProvider
) -> None:
    stream = await client.chat.completions.create(
        model="sim-r0-t40-c0",
        messages=[{"role": "user", "content": "Tell me about rivers."}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    said = [choice for chunk in chunks for choice in chunk.choices]
    assert said[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in said) == passage(0, 40)
    assert said[-1].finish_reason == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (8, 40)
    assert usage.total_tokens == 48
    assert (provider.log[0].tokens, provider.log[0].end) == (40, End.COMPLETED)


async def test_chat_says_the_text_when_not_streamed(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="sim-t9", messages=[{"role": "user", "content": "Hello there"}], n=2
    )
    assert [choice.message.content for choice in answer.choices] == [
        passage(0, 9),
        passage(97, 9),
    ]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 18


async def test_answer_ends_at_the_cap_when_the_request_names_one(
    client: AsyncOpenAI,
) -> None:
    answer = await client.completions.create(
        model="sim-t9", prompt=["one", "two words"], max_tokens=5, n=2
    )
    assert [choice.text for choice in answer.choices] == [
        passage(index * 97, 5) for index in range(4)
    ]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 20


async def test_continuous_usage_grows_to_the_whole_when_streamed(
    client: AsyncOpenAI,
) -> None:
    stream = await client.chat.completions.create(
        model="sim-t20-c0",
        messages=[{"role": "user", "content": "Hi"}],
        stream=True,
        extra_body={
            "stream_options": {"include_usage": True, "continuous_usage_stats": True}
        },
    )
    usages = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage]
    assert usages == [0, 1, 3, 6, 7, 9, 12, 13, 15, 18, 19, 20, 20, 20]


async def test_stream_has_no_usage_when_it_was_not_asked_for(
    client: AsyncOpenAI,
) -> None:
    stream = await client.chat.completions.create(
        model="sim-t3", messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    assert [chunk.usage async for chunk in stream] == [None] * 5


async def test_unknown_fault_is_refused_when_the_model_name_asks_for_it(
    client: AsyncOpenAI,
) -> None:
    with pytest.raises(NotFoundError):
        await client.completions.create(model="sim-xnonsense", prompt="Hi")


async def test_client_sees_the_refusal_when_the_cap_is_zero(
    client: AsyncOpenAI,
) -> None:
    with pytest.raises(BadRequestError, match="at least 1"):
        await client.completions.create(model="sim", prompt="Hi", max_tokens=0)


async def test_models_lists_the_model_when_asked(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["sim"]


async def test_tokens_keep_the_rate_when_one_is_set(
    client: AsyncOpenAI, provider: SimulatedProvider
) -> None:
    await client.chat.completions.create(
        model="sim-r200-t41-f50", messages=[{"role": "user", "content": "Hi"}]
    )
    attempt = provider.log[0]
    assert attempt.ended is not None
    took_ns = attempt.ended.monotonic_ns - attempt.started.monotonic_ns
    assert 0.245 <= took_ns / 1e9 < 1  # loops fire up to a clock tick early
