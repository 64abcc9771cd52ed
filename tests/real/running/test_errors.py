"""vLLM's refusals reach the caller with their status, and cost nothing."""

import httpx
import pytest

from tests.integration.fleet import Fleet, Key

pytestmark = [pytest.mark.real, pytest.mark.anyio]

NO_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x"}}
REFUSED: dict[str, dict[str, object]] = {
    "in the first event of a 200, if streamed": {"logit_bias": {"99999999": 1}},
    "by a validator": {"temperature": -1},
    "for its schema": {"response_format": NO_SCHEMA},
}


async def refusal(
    fleet: Fleet, key: Key, model: str, **members: object
) -> tuple[int, str]:
    """Status and code of the answer, which must be an error in its envelope."""
    content = members.pop("content", "Why so thick?")
    question = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 8,
    }
    async with fleet.client(key) as client:
        answer = await client.post("/v1/chat/completions", json=question | members)
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, code(answer)


def code(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return str(error["code"])


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("members", REFUSED.values(), ids=REFUSED.keys())
async def test_request_is_refused_when_vllm_refuses_it(
    fleet: Fleet, key: Key, adapter: str, stream: bool, members: dict[str, object]
) -> None:
    seen = await refusal(fleet, key, adapter, stream=stream, **members)
    assert seen == (400, "invalid_request")
    assert await fleet.used(key) == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_request_is_refused_when_its_prompt_is_longer_than_the_context(
    fleet: Fleet, key: Key, adapter: str, stream: bool, context_tokens: int
) -> None:
    content = "lock " * context_tokens
    seen = await refusal(fleet, key, adapter, stream=stream, content=content)
    assert seen == (400, "invalid_request")  # vLLM's own code is a number
    assert await fleet.used(key) == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_request_is_refused_when_vllm_has_no_such_model(
    fleet: Fleet, key: Key, adapter: str, stream: bool
) -> None:
    seen = await refusal(fleet, key, f"unknown-to-{adapter}", stream=stream)
    assert seen == (404, "model_not_found")
    assert await fleet.used(key) == 0
