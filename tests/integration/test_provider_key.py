"""A provider's key: refused, echoed by the provider, or not there at all."""

import json
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from tests.contract.provider_desk import ADAPTERS, CANARY, Noting
from tests.gateway.providers.raw_server import Peer, RawServer
from tests.integration.fleet import GATEWAY, Fleet, Key, Plan
from tests.integration.raw_client import QUESTION, chat

pytestmark = pytest.mark.anyio

EXAMPLE = Path(__file__).parents[2] / "docs" / "example-config.yaml"
AMBIENT = "sk-ambient-0f-n0b0dy"
"""In the environment, and named by no provider."""
ABSENT = {"NO_SUCH_VARIABLE": "unset", "EMPTY_VARIABLE": "empty"}
SECRET = f"<b>{CANARY}</b> {CANARY}"
ERROR = {"message": SECRET, "type": SECRET, "param": SECRET, "code": SECRET}
CONTENT = {"choices": [{"index": 0, "delta": {"content": " river"}}]}


@dataclass(frozen=True)
class Reply:
    """What a provider says, with the key wherever it fits, and what becomes of it.

    Attributes:
        status: The provider's.
        media_type: Without parameters.
        body: Of its answer.
        told: Our status.
        code: Ours; None where it is the provider's own, whatever that is.
    """

    status: int
    media_type: str
    body: str
    told: int = 502
    code: str | None = "upstream_error"

    @property
    def wire(self) -> bytes:
        head = (
            f"HTTP/1.1 {self.status} {CANARY}",
            f"content-type: {self.media_type}; key={CANARY}",
            f"www-authenticate: Bearer {CANARY}",
            f"set-cookie: key={CANARY}",
            f"retry-after: {CANARY}",
            f"x-request-id: {CANARY}",
            f"x-ratelimit-limit-requests: {CANARY}",
            f"content-length: {len(self.body)}",
            "\r\n",
        )
        return "\r\n".join(head).encode() + self.body.encode()


def events(*payloads: object) -> str:
    return "".join(f"data: {json.dumps(one)}\n\n" for one in payloads)


REPLIES = {
    "401": Reply(401, "application/json", json.dumps({"error": ERROR})),
    "401-text": Reply(401, "text/plain", f"wrong key {CANARY}"),
    "403-detail": Reply(403, "application/json", json.dumps({"detail": SECRET})),
    "403-page": Reply(403, "text/html", f"<html><h1>{SECRET}</h1></html>"),
    "500": Reply(500, "application/json", json.dumps({"error": SECRET})),
    "200-error": Reply(200, "application/json", json.dumps({"error": ERROR})),
    "400": Reply(400, "application/json", json.dumps({"error": ERROR}), 400, None),
    "429": Reply(429, "application/json", json.dumps({"error": ERROR}), 429, None),
}
STREAMS = {
    "first": Reply(200, "text/event-stream", events({"error": {**ERROR, "code": 401}})),
    "later": Reply(200, "text/event-stream", events(CONTENT, {"error": ERROR}), 200),
}


class Repeating:
    """Gives the reply that the request's model names."""

    async def __call__(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            assert b"authorization: Bearer " + CANARY.encode() in request
            asked = json.loads(request.partition(b"\r\n\r\n")[2])
            await peer.send((REPLIES | STREAMS)[asked["model"]].wire)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The fleet stands on the loop of all tests."""
    return "asyncio"


@pytest.fixture(scope="module")
async def keyless(anyio_backend: str) -> Noting:
    """The server of providers that have no key."""
    return Noting()


@pytest.fixture(scope="module")
async def fleet(keyless: Noting) -> AsyncIterator[Fleet]:
    async with RawServer(Repeating()) as repeating, RawServer(keyless) as never:
        environment = {
            "PROVIDER_KEY": CANARY,
            "EMPTY_VARIABLE": "",
            "OPENAI_API_KEY": AMBIENT,
            "OPENAI_LOG": "debug",
        }
        extra = configuration(repeating.url("/v1"), never.url("/v1"))
        plan = Plan(models={}, extra=extra, environment=environment)
        async with Fleet(plan) as fleet:
            yield fleet
        assert never.accepted == 0


def configuration(repeating: str, never: str) -> dict[str, object]:
    """For each adapter a provider with its key, and one for each way to have none."""
    variables = {"PROVIDER_KEY": repeating, **dict.fromkeys(ABSENT, never)}
    candidates = [
        *product(["PROVIDER_KEY"], REPLIES | STREAMS),
        *((variable, variable) for variable in ABSENT),
    ]
    return {
        "providers": [
            {
                "name": f"{adapter}-{variable}",
                "adapter": adapter,
                "base_url": url,
                "api_key_env": variable,
            }
            for adapter, (variable, url) in product(ADAPTERS, variables.items())
        ],
        "models": [
            {
                "name": f"{adapter}-{model}",
                "candidates": [{"provider": f"{adapter}-{variable}", "model": model}],
            }
            for adapter, (variable, model) in product(ADAPTERS, candidates)
        ],
    }


@pytest.fixture
def key(fleet: Fleet) -> Key:
    return fleet.new_key()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    ("name", "stream"), [*product(REPLIES, [False, True]), *product(STREAMS, [True])]
)
async def test_key_is_repeated_nowhere_when_the_provider_repeats_it(
    fleet: Fleet, key: Key, adapter: str, name: str, stream: bool
) -> None:
    reply = (REPLIES | STREAMS)[name]
    async with fleet.client(key) as client:
        body = chat(f"{adapter}-{name}") | {"stream": stream}
        answer = await client.post("/v1/chat/completions", json=body)
        metrics = (await client.get("/metrics")).text
        quota = (await client.get("/v1/quota")).text
    assert answer.status_code == reply.told
    *_, last = answer.text.removesuffix("\n\n").split("data: ")
    error = json.loads(last)["error"]
    assert "***" in error["message"]
    assert reply.code in {None, error["code"]}
    told = [answer.text, str(answer.headers.raw), metrics, quota]
    assert CANARY not in "".join(told)
    log = fleet.gateways[0].log
    assert CANARY not in log
    assert QUESTION not in log
    if reply.status in {401, 403}:
        line = f"provider {adapter}-PROVIDER_KEY refuses our key: {reply.status}"
        assert line in log


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("variable", ABSENT, ids=ABSENT.get)
async def test_provider_is_left_out_and_its_variable_named_when_it_has_no_key(
    fleet: Fleet, key: Key, keyless: Noting, adapter: str, variable: str
) -> None:
    async with fleet.client(key) as client:
        body = chat(f"{adapter}-{variable}")
        answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_healthy_provider"
    assert keyless.requests == []
    log = fleet.gateways[0].log
    (warning,) = [
        line for line in log.splitlines() if f"provider {adapter}-{variable}" in line
    ]
    assert "WARNING" in warning
    assert f"no {variable}" in warning
    assert AMBIENT not in log


@pytest.mark.parametrize("command", [["check"], ["serve", "--port", "0"]])
def test_variable_is_named_and_its_value_is_not_when_it_fits_no_header(
    command: list[str],
) -> None:
    environment = {
        "PATH": os.environ["PATH"],  # noqa: TID251 - to find Python
        "GATEWAY_KEYS": '{"keys": []}',
        "GATEWAY_KEY_PEPPER": "pepper",
        "REDIS_URL": "redis://127.0.0.1:1",
        "OPENAI_API_KEY": f"{CANARY}\n",
    }
    ran = subprocess.run(
        [GATEWAY, *command, "--config", EXAMPLE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "providers.1.api_key_env: OPENAI_API_KEY " in ran.stderr
    assert "Traceback" not in ran.stderr
    assert CANARY not in ran.stderr
