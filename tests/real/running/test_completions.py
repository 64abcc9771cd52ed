"""The older endpoint and the list of models, with vLLM's own arithmetic."""

import pytest
from openai import AsyncOpenAI

from tests.integration.fleet import Fleet, Key
from tests.real.engine import Engine

pytestmark = [pytest.mark.real, pytest.mark.anyio]

TOKENS = 12
PROMPTS: dict[str, tuple[list[str] | list[list[int]] | str, int]] = {
    "a text": ("The canal is full of", 1),
    "texts": (["The canal is full of", "A weir", "Locks"], 3),
    "token ids": ([[5, 6, 7], [8, 9]], 2),
}
"""A prompt, and how many it is."""
IGNORE_EOS = {"ignore_eos": True}


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize(("prompt", "prompts"), PROMPTS.values(), ids=PROMPTS.keys())
async def test_completion_is_charged_exactly_when_it_is_not_streamed(
    fleet: Fleet,
    key: Key,
    openai: AsyncOpenAI,
    engine: Engine,
    adapter: str,
    prompt: str,
    prompts: int,
    echo: bool,
) -> None:
    before = await engine.quiet()
    answer = await openai.completions.create(
        model=adapter,
        prompt=prompt,
        max_tokens=TOKENS,
        n=2,
        echo=echo,
        extra_body=IGNORE_EOS,
    )
    after = await engine.quiet()
    assert len(answer.choices) == 2 * prompts
    assert answer.usage is not None
    generated = after.generated - before.generated
    assert answer.usage.completion_tokens == generated == 2 * prompts * TOKENS
    assert await fleet.used(key) == answer.usage.total_tokens


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize(("prompt", "prompts"), PROMPTS.values(), ids=PROMPTS.keys())
async def test_completion_is_charged_exactly_when_it_is_streamed(
    fleet: Fleet,
    key: Key,
    openai: AsyncOpenAI,
    engine: Engine,
    adapter: str,
    prompt: str,
    prompts: int,
    echo: bool,
) -> None:
    before = await engine.quiet()
    stream = await openai.completions.create(
        model=adapter,
        prompt=prompt,
        max_tokens=TOKENS,
        n=2,
        echo=echo,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=IGNORE_EOS,
    )
    chunks = [chunk async for chunk in stream]
    after = await engine.quiet()
    indices = {choice.index for chunk in chunks for choice in chunk.choices}
    assert indices == set(range(2 * prompts))
    (usage,) = [chunk.usage for chunk in chunks if chunk.usage is not None]
    generated = after.generated - before.generated
    assert usage.completion_tokens == generated == 2 * prompts * TOKENS
    assert await fleet.used(key) == usage.total_tokens


async def test_completion_has_the_same_usage_as_without_the_gateway(
    base_url: str, upstream_model: str, openai: AsyncOpenAI, adapter: str
) -> None:
    async with AsyncOpenAI(base_url=base_url, api_key="none") as direct:
        usages = [
            (
                await client.completions.create(
                    model=model, prompt=["One", "Two"], max_tokens=TOKENS, seed=7
                )
            ).usage
            for client, model in ((direct, upstream_model), (openai, adapter))
        ]
    assert usages[0] == usages[1]


async def test_models_are_those_of_the_configuration(
    openai: AsyncOpenAI, adapter: str
) -> None:
    listed = [model.id async for model in await openai.models.list()]
    assert adapter in listed
    assert (await openai.models.retrieve(adapter)).id == adapter
