"""What is charged is what vLLM says it generated, in `usage` and in its metrics."""

import random
from typing import Any

import anyio
import pytest
from openai import AsyncOpenAI

from tests.integration.fleet import Fleet, Key
from tests.real.engine import Engine

pytestmark = [pytest.mark.real, pytest.mark.anyio]

EXCHANGES = 100
WORDS = ("lock", "weir", "flood", "gate", "basin", "canal")


def ask(model: str, tokens: int) -> dict[str, Any]:
    """Arguments of a chat whose answer has exactly so many tokens."""
    content = f"Tell me of {' '.join(random.sample(WORDS, 4))}."
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "extra_body": {"ignore_eos": True},
    }


async def test_usage_is_exact_when_the_answer_is_not_streamed(
    fleet: Fleet, key: Key, openai: AsyncOpenAI, engine: Engine, adapter: str
) -> None:
    before = await engine.quiet()
    answer = await openai.chat.completions.create(**ask(adapter, 20))
    after = await engine.quiet()
    assert answer.usage.completion_tokens == after.generated - before.generated == 20
    assert await fleet.used(key) == answer.usage.total_tokens


@pytest.mark.parametrize("choices", [1, 3])
async def test_usage_is_exact_when_the_answer_is_streamed(
    fleet: Fleet,
    key: Key,
    openai: AsyncOpenAI,
    engine: Engine,
    adapter: str,
    choices: int,
) -> None:
    before = await engine.quiet()
    stream = await openai.chat.completions.create(
        **ask(adapter, 20),
        n=choices,
        stream=True,
        stream_options={"include_usage": True},
    )
    usages = [chunk.usage async for chunk in stream if chunk.usage is not None]
    after = await engine.quiet()
    assert len(usages) == 1
    assert usages[0].completion_tokens == after.generated - before.generated
    assert usages[0].completion_tokens == 20 * choices
    assert await fleet.used(key) == usages[0].total_tokens


async def test_usage_is_charged_and_not_shown_when_it_was_not_asked_for(
    fleet: Fleet, key: Key, openai: AsyncOpenAI, engine: Engine, adapter: str
) -> None:
    asked = ask(adapter, 8)
    stream = await openai.chat.completions.create(**asked, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks
    assert all(
        chunk.choices and "usage" not in chunk.model_fields_set for chunk in chunks
    )
    prompt = await engine.prompt_tokens(asked["messages"])
    assert await fleet.used(key) == prompt + 8


async def test_charges_lie_between_relayed_and_generated_when_half_is_cancelled(
    fleet: Fleet, openai: AsyncOpenAI, key: Key, engine: Engine
) -> None:
    before, charged_before = await engine.quiet(), await charged(fleet)
    limiter = anyio.CapacityLimiter(12)
    relayed = 0

    async def exchange(number: int) -> None:
        nonlocal relayed
        async with limiter:
            seen = await tokens_seen(openai, random.randint(1, 50) * (number % 2))
            relayed += seen

    async with anyio.create_task_group() as tasks:
        for number in range(EXCHANGES):
            tasks.start_soon(exchange, number)
    after = await engine.quiet()
    await fleet.used(key)  # nothing is held any more
    completion = await charged(fleet) - charged_before
    generated = after.generated - before.generated
    print(f"relayed {relayed} ≤ charged {completion} ≤ generated {generated}")
    assert relayed <= completion <= generated


async def tokens_seen(openai: AsyncOpenAI, stop_at: int) -> int:
    """Usage of a whole answer, or so many events, each a token at least."""
    stream = await openai.chat.completions.create(
        **ask("vllm", 60), stream=True, stream_options={"include_usage": True}
    )
    seen = exact = 0
    async with stream:
        async for chunk in stream:
            if chunk.usage is not None:
                exact = chunk.usage.completion_tokens
            elif chunk.choices and chunk.choices[0].delta.content:
                seen += 1
                if seen == stop_at:
                    return seen
    return int(exact)


async def charged(fleet: Fleet) -> int:
    """Completion tokens the gateway has charged so far."""
    name = "gateway_tokens_total"
    by_source = await fleet.metric(
        name, by="source", model="vllm", direction="completion"
    )
    return by_source.total()
