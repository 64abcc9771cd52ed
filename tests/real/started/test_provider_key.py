"""A vLLM with an API key: whoever has a wrong one learns nothing of it."""

from collections.abc import Iterator

import pytest

from tests.integration.fleet import Fleet, running
from tests.real.adapters import through_both
from tests.real.engine import listed_model
from tests.real.given import given
from tests.real.real_server import RealServer, started

pytestmark = [pytest.mark.real, pytest.mark.anyio]

RIGHT = "sk-real-right-2f6c1d0b7a"
WRONG = "sk-real-wrong-9e4b83c5d1"


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with started(given("SLUICE_REAL_VLLM"), "--api-key", RIGHT) as server:
        yield server


def fleet_with(server: RealServer, provider_key: str) -> Iterator[Fleet]:
    plan = through_both(
        server.url,
        listed_model(server.url, RIGHT)[0],
        {"api_key_env": "PROVIDER_KEY"},
        environment={"PROVIDER_KEY": provider_key},
    )
    with running(plan) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def fleet(server: RealServer) -> Iterator[Fleet]:
    yield from fleet_with(server, RIGHT)


@pytest.fixture(scope="module")
def mistaken_fleet(server: RealServer) -> Iterator[Fleet]:
    yield from fleet_with(server, WRONG)


def question(model: str, *, stream: bool) -> dict[str, object]:
    messages = [{"role": "user", "content": "Why so thick?"}]
    return {"model": model, "messages": messages, "max_tokens": 4, "stream": stream}


@pytest.mark.parametrize("stream", [True, False])
async def test_answer_is_given_when_the_gateway_has_the_right_key(
    fleet: Fleet, adapter: str, stream: bool
) -> None:
    async with fleet.client(fleet.new_key()) as client:
        answer = await client.post(
            "/v1/chat/completions", json=question(adapter, stream=stream)
        )
    assert answer.status_code == 200
    assert RIGHT not in answer.text + str(answer.headers) + fleet.gateways[0].log


@pytest.mark.parametrize("stream", [True, False])
async def test_provider_is_at_fault_and_its_key_unseen_when_the_key_is_wrong(
    mistaken_fleet: Fleet, adapter: str, stream: bool
) -> None:
    fleet, key = mistaken_fleet, mistaken_fleet.new_key()
    async with fleet.client(key) as client:
        answer = await client.post(
            "/v1/chat/completions", json=question(adapter, stream=stream)
        )
        metrics = (await client.get("/metrics")).text
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_error"
    seen = answer.text + str(answer.headers) + metrics + fleet.gateways[0].log
    assert WRONG not in seen
    assert await fleet.used(key) == 0
