"""Against a real vLLM: ``make real BASE_URL=http://127.0.0.1:8000/v1 MODEL=name``.

The judge is vLLM itself: its ``usage``, and its metrics, which tell from the inside how
many tokens it generated and whether a request still runs. Nothing else may use it
meanwhile.
"""

import os
import random
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import anyio
import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError

from tests.integration.fleet import Fleet, Key, Plan, eventually, running

pytestmark = [pytest.mark.real, pytest.mark.anyio]

BASE_URL = os.environ.get("SLUICE_REAL_BASE_URL", "")  # noqa: TID251 - a test's switch
MODEL = os.environ.get("SLUICE_REAL_MODEL", "")  # noqa: TID251 - a test's switch
EXCHANGES = 200


@dataclass(frozen=True)
class Inside:
    """What vLLM's own metrics say."""

    running: int
    generated: int


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running(Plan(models={}, providers={MODEL: BASE_URL})) as fleet:
        yield fleet


@pytest.fixture
def key(fleet: Fleet) -> Key:
    return fleet.new_key()


@pytest.fixture
async def openai(fleet: Fleet, key: Key) -> AsyncIterator[AsyncOpenAI]:
    base_url = f"{fleet.base_url}/v1"
    async with AsyncOpenAI(
        base_url=base_url, api_key=key.secret, max_retries=0
    ) as client:
        yield client


async def inside() -> Inside:
    root = BASE_URL.removesuffix("/v1")
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{root}/metrics")).text
    return Inside(
        running=round(_sum(text, "vllm:num_requests_running")),
        generated=round(_sum(text, "vllm:generation_tokens_total")),
    )


def _sum(text: str, name: str) -> float:
    return sum(map(float, re.findall(rf"^{name}\{{.*\}} (\S+)$", text, re.MULTILINE)))


async def quiet() -> Inside:
    """vLLM with nothing to do."""
    return await eventually(inside, lambda now: now.running == 0, within_seconds=10)


def ask(tokens: int) -> dict[str, object]:
    words = random.sample(["lock", "weir", "flood", "gate", "basin", "canal"], 4)
    content = f"Tell me of {' '.join(words)}."
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "extra_body": {"ignore_eos": True},
    }


async def test_usage_is_exact_when_the_answer_is_not_streamed(
    fleet: Fleet, key: Key, openai: AsyncOpenAI
) -> None:
    before = await quiet()
    answer = await openai.chat.completions.create(**ask(20))  # type: ignore[call-overload]
    after = await quiet()
    assert answer.usage.completion_tokens == after.generated - before.generated == 20
    assert await fleet.used(key) == answer.usage.total_tokens


@pytest.mark.parametrize("choices", [1, 3])
async def test_usage_is_exact_when_the_answer_is_streamed(
    fleet: Fleet, key: Key, openai: AsyncOpenAI, choices: int
) -> None:
    before = await quiet()
    stream = await openai.chat.completions.create(  # type: ignore[call-overload]
        **ask(20), n=choices, stream=True, stream_options={"include_usage": True}
    )
    usages = [chunk.usage async for chunk in stream if chunk.usage is not None]
    after = await quiet()
    assert len(usages) == 1
    assert usages[0].completion_tokens == after.generated - before.generated
    assert usages[0].completion_tokens == 20 * choices
    assert await fleet.used(key) == usages[0].total_tokens


async def test_no_usage_is_seen_when_it_was_not_asked_for(openai: AsyncOpenAI) -> None:
    stream = await openai.chat.completions.create(**ask(8), stream=True)  # type: ignore[call-overload]
    chunks = [chunk async for chunk in stream]
    assert chunks
    assert all(
        chunk.choices and "usage" not in chunk.model_fields_set for chunk in chunks
    )


async def test_generation_ends_when_the_client_cancels(
    fleet: Fleet, key: Key, openai: AsyncOpenAI
) -> None:
    before = await quiet()
    stream = await openai.chat.completions.create(**ask(1500), stream=True)  # type: ignore[call-overload]
    received = 0
    async for _ in stream:
        received += 1
        if received == 20:
            break
    await stream.close()
    after = await eventually(inside, lambda now: now.running == 0, within_seconds=1)
    assert after.running == 0
    generated = after.generated - before.generated
    assert generated < 1500
    prompt = 64  # more than any prompt of this module
    assert received - 1 <= await fleet.used(key) <= prompt + generated


async def test_error_has_its_status_when_vllm_reports_it_in_the_first_event(
    fleet: Fleet, key: Key, openai: AsyncOpenAI
) -> None:
    with pytest.raises(BadRequestError) as refused:
        await openai.chat.completions.create(  # type: ignore[call-overload]
            **ask(8), stream=True, logit_bias={"99999999": 1}
        )
    assert refused.value.code == "invalid_request"
    assert await fleet.used(key) == 0


async def test_charges_lie_between_relayed_and_generated_when_half_is_cancelled(
    fleet: Fleet, openai: AsyncOpenAI, key: Key
) -> None:
    before, charged_before = await quiet(), await charged(fleet)
    exact = [0]
    relayed = [0]
    limiter = anyio.CapacityLimiter(12)

    async def exchange(number: int) -> None:
        async with limiter:
            stream = await openai.chat.completions.create(  # type: ignore[call-overload]
                **ask(60), stream=True, stream_options={"include_usage": True}
            )
            stop_at = random.randint(1, 50) if number % 2 else None
            seen = 0
            async for chunk in stream:
                if chunk.usage is not None:
                    exact[0] += chunk.usage.completion_tokens
                elif chunk.choices and chunk.choices[0].delta.content:
                    seen += 1
                    if seen == stop_at:
                        await stream.close()
                        break
            if stop_at is not None:
                relayed[0] += seen

    async with anyio.create_task_group() as tasks:
        for number in range(EXCHANGES):
            tasks.start_soon(exchange, number)
    after = await quiet()
    await fleet.used(key)  # nothing is held any more
    completion = await charged(fleet) - charged_before
    generated = after.generated - before.generated
    seen = exact[0] + relayed[0]
    print(f"relayed {seen} ≤ charged {completion} ≤ generated {generated}")
    assert seen <= completion <= generated


async def charged(fleet: Fleet) -> int:
    """Completion tokens the gateway has charged so far."""
    name = "gateway_tokens_total"
    by_source = await fleet.metric(
        name, by="source", model=MODEL, direction="completion"
    )
    return by_source.total()
