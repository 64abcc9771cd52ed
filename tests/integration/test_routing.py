"""Fail-over, balance, breakers and probes over real sockets, with several providers."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import anyio
import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from gateway.demo.scenario import Fault, SimulatorSettings
from gateway.demo.simulated import SimulatedProvider
from tests.integration.fleet import Fleet, Key, Plan, eventually, free_port, running

pytestmark = pytest.mark.anyio

OPEN_SECONDS = 1.0


class Providers:
    """Simulated providers beside the fleet's own, each with one way to behave."""

    def __init__(self, stack: ExitStack) -> None:
        portal = stack.enter_context(start_blocking_portal())
        self.by_name: dict[str, SimulatedProvider] = {}
        for name, settings in {
            "good": SimulatorSettings(rate=0, tokens=8, first_token_ms=0),
            "better": SimulatorSettings(rate=0, tokens=8, first_token_ms=0),
            "limited": SimulatorSettings(fault=Fault.STATUS_429),
            "busy": SimulatorSettings(fault=Fault.STATUS_503),
            "cut": SimulatorSettings(rate=0, fault=Fault.TRUNCATE),
            "deaf": SimulatorSettings(fault=Fault.HANG_BEFORE_HEADERS),
        }.items():
            provider = SimulatedProvider(settings)
            stack.enter_context(portal.wrap_async_context_manager(provider))
            self.by_name[name] = provider
        self.dead_port = free_port()

    def attempts(self, name: str) -> int:
        return self.by_name[name].log.total

    def urls(self) -> dict[str, str]:
        dead = f"http://127.0.0.1:{self.dead_port}/v1"
        return {
            **{name: one.base_url for name, one in self.by_name.items()},
            "dead": dead,
        }


MODELS: dict[str, list[dict[str, object]]] = {
    "over": [{"provider": "dead"}, {"provider": "good", "priority": 1}],
    "over-busy": [{"provider": "busy"}, {"provider": "good", "priority": 1}],
    "over-limited": [{"provider": "limited"}, {"provider": "good", "priority": 1}],
    "only-limited": [{"provider": "limited"}],
    "only-dead": [{"provider": "dead"}],
    "only-cut": [{"provider": "cut"}],
    "balanced": [
        {"provider": "good", "weight": 3},
        {"provider": "better", "weight": 1},
    ],
    "keyless": [{"provider": "keyless"}],
    "down": [{"provider": "down"}],
    "mixed": [
        {"provider": "dead"},
        {"provider": "limited"},
        {"provider": "deaf", "priority": 1},
        {"provider": "good", "priority": 2},
    ],
}


@pytest.fixture(scope="module")
def providers() -> Iterator[Providers]:
    with ExitStack() as stack:
        yield Providers(stack)


@pytest.fixture(scope="module")
def fleet(providers: Providers) -> Iterator[Fleet]:
    extra = {
        "providers": [
            *(
                {"name": name, "adapter": "vllm", "base_url": url}
                for name, url in providers.urls().items()
            ),
            {
                "name": "keyless",
                "adapter": "openai",
                "base_url": providers.urls()["good"],
                "api_key_env": "NO_SUCH_VARIABLE",
            },
            {
                "name": "down",
                "adapter": "vllm",
                "base_url": providers.urls()["good"],
                "health_path": "/nowhere",
            },
        ],
        "models": [
            {
                "name": name,
                "candidates": [{"model": "any", **one} for one in candidates],
            }
            for name, candidates in MODELS.items()
        ],
        "routing": {
            "breaker": {
                "failures": 3,
                "window_seconds": 10,
                "open_seconds": OPEN_SECONDS,
            }
        },
    }
    streaming = {"first_byte_seconds": 1}
    with running(Plan(models={"m": "sim"}, streaming=streaming, extra=extra)) as one:
        yield one


@pytest.fixture
def key(fleet: Fleet) -> Key:
    return fleet.new_key()


async def ask(
    client: httpx.AsyncClient, model: str, *, stream: bool = False
) -> httpx.Response:
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": model, "messages": messages, "max_tokens": 8, "stream": stream}
    return await client.post("/v1/chat/completions", json=body)


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


@pytest.mark.parametrize("model", ["over-busy", "over-limited"])
async def test_next_candidate_answers_when_the_first_did_not_accept(
    fleet: Fleet, key: Key, model: str
) -> None:
    async with fleet.client(key) as client:
        answer = await ask(client, model)
    assert answer.status_code == 200
    assert answer.headers["x-gateway-provider"] == "good"
    assert answer.headers["x-gateway-attempts"] == "2"
    assert await fleet.used(key) == answer.json()["usage"]["total_tokens"]


async def test_breaker_spares_a_dead_candidate_and_probes_it_when_time_is_up(
    fleet: Fleet, key: Key
) -> None:
    async with fleet.client(key) as client:
        attempts = [
            (await ask(client, "over")).headers["x-gateway-attempts"] for _ in range(6)
        ]
        assert attempts == ["2", "2", "2", "1", "1", "1"]
        assert (await fleet.metric("gateway_breaker_open", by="provider"))["dead"] == 1
        await anyio.sleep(OPEN_SECONDS)
        again = [
            (await ask(client, "over")).headers["x-gateway-attempts"] for _ in range(3)
        ]
        assert again == ["2", "1", "1"]


async def test_nobody_is_asked_when_every_breaker_is_open(
    fleet: Fleet, key: Key
) -> None:
    async with fleet.client(key) as client:
        answers = [await ask(client, "only-dead") for _ in range(5)]
    # the breaker is the candidate's: another model of the same name may share it
    assert answers[-1].status_code == 503
    assert code(answers[-1]) == "no_healthy_provider"
    assert 0 < int(answers[-1].headers["retry-after-ms"]) <= OPEN_SECONDS * 1000
    assert await fleet.used(key) == 0


async def test_truncated_answers_open_the_breaker(fleet: Fleet, key: Key) -> None:
    async with fleet.client(key) as client:
        for _ in range(3):
            await ask(client, "only-cut", stream=True)
        answer = await ask(client, "only-cut", stream=True)
    assert code(answer) == "no_healthy_provider"


async def test_limits_of_a_provider_never_open_its_breaker(
    fleet: Fleet, key: Key, providers: Providers
) -> None:
    before = providers.attempts("limited")
    async with fleet.client(key) as client:
        for _ in range(6):
            answer = await ask(client, "only-limited")
            assert (answer.status_code, code(answer)) == (429, "rate_limit_exceeded")
    assert providers.attempts("limited") - before == 6
    assert await fleet.used(key) == 0


async def test_equals_share_by_weight_when_they_are_busy(
    fleet: Fleet, key: Key
) -> None:
    async with fleet.client(key) as client, anyio.create_task_group() as tasks:
        seen: Counter[str] = Counter()

        async def one() -> None:
            answer = await ask(client, "balanced")
            seen[answer.headers["x-gateway-provider"]] += 1

        for _ in range(80):
            tasks.start_soon(one)
    assert seen.total() == 80
    assert seen["good"] > seen["better"] > 0


async def test_provider_without_its_key_is_never_asked(
    fleet: Fleet, key: Key, providers: Providers
) -> None:
    async with fleet.client(key) as client:
        answer = await ask(client, "keyless")
    assert (answer.status_code, code(answer)) == (503, "no_healthy_provider")
    assert (await fleet.metric("gateway_provider_up", by="provider"))["keyless"] == 0


async def test_provider_is_left_out_when_its_health_path_does_not_answer(
    fleet: Fleet, key: Key
) -> None:
    async def up() -> int:
        return (await fleet.metric("gateway_provider_up", by="provider"))["down"]

    assert await eventually(up, lambda value: value == 0, within_seconds=6) == 0
    async with fleet.client(key) as client:
        answer = await ask(client, "down")
    assert (answer.status_code, code(answer)) == (503, "no_healthy_provider")


async def test_no_client_notices_when_one_is_dead_one_hangs_and_one_is_limited(
    fleet: Fleet, key: Key, providers: Providers
) -> None:
    before = {name: providers.attempts(name) for name in providers.by_name}
    answers: list[httpx.Response] = []

    async with fleet.client(key) as client, anyio.create_task_group() as tasks:

        async def one() -> None:
            answers.append(await ask(client, "mixed", stream=True))

        for _ in range(50):
            tasks.start_soon(one)
    after = {
        name: providers.attempts(name) - before[name] for name in providers.by_name
    }
    served = [one for one in answers if one.status_code == 200]
    assert all(one.text.endswith("data: [DONE]\n\n") for one in served)
    # The budget bounds what a storm of failures may add; the rest is told the truth.
    assert {one.status_code for one in answers} <= {200, 429, 502, 503, 504}
    extra = sum(after.values()) - len(answers)
    assert extra <= max(3, 0.2 * len(answers)) * 3
    assert await fleet.used(key) == 13 * after["good"]
    async with fleet.client(key) as client:
        calm = await ask(client, "mixed", stream=True)
    assert calm.status_code == 200
    assert calm.headers["x-gateway-provider"] == "good"
