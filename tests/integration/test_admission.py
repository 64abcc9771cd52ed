"""Who is let in, and what those who are not are told."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from uuid import uuid4

import anyio
import httpx
import pytest

from gateway.auth.principal import Limits
from gateway.auth.secret import new_secret
from tests.integration.fleet import MODEL_CAP, Fleet, Plan, Terms, running
from tests.integration.raw_client import (
    OUR_PROMPT_TOKENS,
    PROMPT_TOKENS,
    Leave,
    RawClient,
    chat,
)

pytestmark = pytest.mark.anyio

CAP = 10
AMOUNT = OUR_PROMPT_TOKENS + CAP
"""What a request with this cap reserves, and of ``exact`` costs."""
FIFTY = Terms(Limits(tokens_per_day=50 * AMOUNT))
MONTHLY = Terms(Limits(tokens_per_month=AMOUNT - 1))
ONE_AT_A_TIME = Terms(Limits(concurrency=1))
SIXTY_REQUESTS = Terms(Limits(requests_per_minute=60))
TOKENS_A_MINUTE = Terms(Limits(tokens_per_minute=6000))
ONE_MODEL = Terms(models=("brie*",))
SHORT_ANSWERS = Terms(Limits(max_output_tokens=100))
MODELS = {
    "brief": "sim-r0-t10-f0",
    "exact": "sim-r0-t10-f0-xno-usage",
    "long": "sim-r0-t5000-f0",
    "endless": "sim-r20-t100000-f0",
}
MAX_BODY_BYTES = 4096
COMPLETIONS = "/v1/chat/completions"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    plan = Plan(
        models=MODELS,
        terms=(
            FIFTY,
            MONTHLY,
            ONE_AT_A_TIME,
            SIXTY_REQUESTS,
            TOKENS_A_MINUTE,
            ONE_MODEL,
            SHORT_ANSWERS,
        ),
        server={"max_body_bytes": MAX_BODY_BYTES},
    )
    with running(plan) as fleet:
        yield fleet


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a key that may do everything."""
    async with fleet.client(fleet.new_key()) as client:
        yield client


async def ask(
    client: httpx.AsyncClient, model: str = "brief", **members: object
) -> httpx.Response:
    body = {**chat(model), "max_tokens": CAP, **members}
    return await client.post(COMPLETIONS, json=body)


def error_of(answer: httpx.Response) -> Mapping[str, str | None]:
    """What is in the envelope, which has the members every error has."""
    (error,) = answer.json().values()
    assert error.keys() == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"
    return dict(error)


def refusal(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, error_of(answer)["code"]


async def test_quota_admits_exactly_what_fits_when_all_come_at_once(
    fleet: Fleet,
) -> None:
    key = fleet.new_key(FIFTY)
    answers: list[httpx.Response] = []
    async with fleet.client(key) as client, anyio.create_task_group() as tasks:

        async def ask_one() -> None:
            answers.append(await ask(client, "exact"))

        for _ in range(200):
            tasks.start_soon(ask_one)

    refused = [answer for answer in answers if answer.status_code != 200]
    assert (len(answers), len(refused)) == (200, 150)
    for answer in refused:
        assert refusal(answer) == (429, "insufficient_quota")
        assert 0 < int(answer.headers["retry-after"]) <= 86_400
        assert 0 < int(answer.headers["retry-after-ms"]) <= 86_400_000
        assert answer.headers["x-should-retry"] == "false"
    assert await fleet.used(key) == 50 * AMOUNT
    asked = [one for one in list(fleet.provider.log) if one.model == MODELS["exact"]]
    assert len(asked) == 50


async def test_month_is_refused_when_it_does_not_suffice(fleet: Fleet) -> None:
    async with fleet.client(fleet.new_key(MONTHLY)) as client:
        answer = await ask(client)
    assert refusal(answer) == (429, "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"


async def test_concurrency_is_free_again_when_a_client_has_left(fleet: Fleet) -> None:
    key = fleet.new_key(ONE_AT_A_TIME)
    async with fleet.client(key) as client:
        async with RawClient(fleet, key, uuid4().hex) as first:
            await first.ask("endless")
            await first.read_until(b"river")
            refused = await ask(client)
            held = await fleet.quota(key)
            await first.leave(Leave.RST)
        await fleet.used(key)
        admitted = await ask(client)
    assert refusal(refused) == (429, "concurrency_exceeded")
    assert {"retry-after", "retry-after-ms"} <= refused.headers.keys()
    assert "x-should-retry" not in refused.headers
    assert held["concurrency"] == {"limit": 1, "in_use": 1}
    assert admitted.status_code == 200


async def test_waiting_admits_when_requests_of_the_minute_are_used_up(
    fleet: Fleet,
) -> None:
    async with fleet.client(fleet.new_key(SIXTY_REQUESTS)) as client:
        answers = [await ask(client)]
        while answers[-1].status_code == 200 and len(answers) < 70:
            answers.append(await ask(client))
        *admitted, refused = answers
        assert len(admitted) >= 60
        for answer in admitted:
            assert answer.headers["x-ratelimit-limit-requests"] == "60"
            assert int(answer.headers["x-ratelimit-remaining-requests"]) < 60
            assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        assert refusal(refused) == (429, "rate_limit_exceeded")
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert await admitted_after_waiting(client, refused, "brief", CAP)


async def test_waiting_admits_when_tokens_of_the_minute_are_used_up(
    fleet: Fleet,
) -> None:
    async with fleet.client(fleet.new_key(TOKENS_A_MINUTE)) as client:
        used_up = await ask(client, "long", max_tokens=5000)
        assert used_up.headers["x-ratelimit-limit-tokens"] == "6000"
        answer = await ask(client, "long", max_tokens=1050)
        assert refusal(answer) == (429, "rate_limit_exceeded")
        assert "x-should-retry" not in answer.headers
        assert await admitted_after_waiting(client, answer, "long", 1050)


async def admitted_after_waiting(
    client: httpx.AsyncClient, refused: httpx.Response, model: str, cap: int
) -> bool:
    wait_ms = int(refused.headers["retry-after-ms"])
    assert (wait_ms - 1) // 1000 + 1 == int(refused.headers["retry-after"]) <= 2
    await anyio.sleep(wait_ms / 1000)
    return (await ask(client, model, max_tokens=cap)).status_code == 200


async def test_request_larger_than_a_minute_is_never_worth_repeating(
    fleet: Fleet,
) -> None:
    async with fleet.client(fleet.new_key(TOKENS_A_MINUTE)) as client:
        answer = await ask(client, max_tokens=6000)
    assert refusal(answer) == (429, "rate_limit_exceeded")
    assert answer.headers["x-should-retry"] == "false"


async def test_refusal_changes_nothing_but_its_metric(fleet: Fleet) -> None:
    key = fleet.new_key(FIFTY)
    reason, outcomes = "insufficient_quota", await fleet.outcomes("brief")
    before = await fleet.quota(key), (await rejections(fleet))[reason]
    async with fleet.client(key) as client:
        assert refusal(await ask(client, max_tokens=5000)) == (429, reason)
    after = await fleet.quota(key), (await rejections(fleet))[reason] - 1
    assert after == before
    assert await fleet.outcomes("brief") == outcomes


async def rejections(fleet: Fleet) -> Mapping[str, int]:
    return await fleet.metric("gateway_rejections_total", by="reason")


async def test_unauthenticated_are_told_the_same_whatever_is_wrong(
    fleet: Fleet,
) -> None:
    known = fleet.new_key().secret
    wrong: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer sk-something-else"},
        {"authorization": f"Bearer {new_secret()}"},
        {"authorization": f"Bearer {known[:-1]}"},
        {"authorization": f"Basic {known}"},
        {"x-api-key": new_secret()},
    ]
    async with fleet.client() as client:
        answers = [await client.get("/v1/quota", headers=one) for one in wrong]
        answers.append(await ask(client))
    assert {refusal(answer) for answer in answers} == {(401, "invalid_api_key")}
    assert len({answer.content for answer in answers}) == 1


@pytest.mark.parametrize("header", ["x-api-key", "api-key"])
async def test_key_is_taken_from_either_header(fleet: Fleet, header: str) -> None:
    key = fleet.new_key()
    async with fleet.client() as client:
        answer = await client.get("/v1/quota", headers={header: key.secret})
    assert answer.json()["key"] == key.id


async def test_address_that_guesses_is_refused_but_never_a_valid_key(
    fleet: Fleet,
) -> None:
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx.AsyncClient(
        base_url=fleet.base_url, transport=transport
    ) as client:
        answers = [await client.get("/v1/models") for _ in range(31)]
        known = await client.get("/v1/models", headers=fleet.new_key().headers)
    assert [answer.status_code for answer in answers] == [401] * 30 + [429]
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    assert known.status_code == 200


async def test_model_is_hidden_when_the_key_may_not_use_it(fleet: Fleet) -> None:
    async with fleet.client(fleet.new_key(ONE_MODEL)) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        hidden = await client.get("/v1/models/long")
        refused = await ask(client, "long")
        unknown = await ask(client, "no/such")
    assert [model["id"] for model in listed] == ["brief"]
    assert refusal(hidden) == (404, "model_not_found")
    assert refusal(refused) == (403, "model_not_allowed")
    assert refusal(unknown) == (404, "model_not_found")


async def test_cap_beyond_the_keys_own_is_refused(fleet: Fleet) -> None:
    async with fleet.client(fleet.new_key(SHORT_ANSWERS)) as client:
        for name in ("max_tokens", "max_completion_tokens"):
            answer = await ask(client, "long", **{"max_tokens": None, name: 101})
            assert refusal(answer) == (400, "invalid_request")
            assert error_of(answer)["param"] == name


@pytest.mark.parametrize(
    ("terms", "cap"), [(Terms(), MODEL_CAP), (SHORT_ANSWERS, 100)], ids=["model", "key"]
)
async def test_provider_is_given_the_smaller_cap_when_the_client_names_none(
    fleet: Fleet, terms: Terms, cap: int
) -> None:
    key = fleet.new_key(terms)
    async with fleet.client(key) as client:
        answer = (await ask(client, "long", max_tokens=None)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == cap
    assert await fleet.used(key) == PROMPT_TOKENS + cap


async def test_every_answer_has_a_request_id(client: httpx.AsyncClient) -> None:
    paths = ("/healthz", "/readyz", "/metrics", "/v1/models", "/v1/quota", "/nowhere")
    made = [(await client.get(path)).headers["x-request-id"] for path in paths]
    made.append((await ask(client)).headers["x-request-id"])
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a.B-c_9", True), ("x" * 128, True), ("x" * 129, False), ("a b", False)],
)
async def test_request_id_of_the_caller_is_kept_when_it_is_one(
    client: httpx.AsyncClient, given: str, kept: bool
) -> None:
    headers = {"x-request-id": given}
    answer = await client.post(COMPLETIONS, json=chat("brief"), headers=headers)
    assert (answer.headers["x-request-id"] == given) is kept


BAD_BODIES = {
    "empty": b"",
    "half": b'{"model": "brief"',
    "no object": b"[]",
    "nan": b'{"model": "brief", "messages": [{}], "temperature": NaN}',
    "duplicate": b'{"model": "brief", "model": "long", "messages": [{}]}',
    "utf-8": b'{"model": "\xff", "messages": [{}]}',
    "surrogate": b'{"model": "\\ud800", "messages": [{}]}',
    "deep": b'{"model": "brief", "messages": ' + b"[" * 40 + b"]" * 40 + b"}",
    "no model": b'{"messages": [{"role": "user", "content": "x"}]}',
    "no messages": b'{"model": "brief"}',
    "odd messages": b'{"model": "brief", "messages": ["x"]}',
    "odd stream": b'{"model": "brief", "messages": [{}], "stream": "yes"}',
    "odd options": b'{"model": "brief", "messages": [{}], "stream_options": 1}',
    "odd cap": b'{"model": "brief", "messages": [{}], "max_tokens": 0}',
    "odd n": b'{"model": "brief", "messages": [{}], "n": 1.5}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_body_that_is_not_valid_is_refused(
    client: httpx.AsyncClient, body: bytes
) -> None:
    answer = await client.post(COMPLETIONS, content=body)
    assert refusal(answer) == (400, "invalid_request")


async def test_body_is_refused_when_it_says_that_it_is_too_large(
    fleet: Fleet,
) -> None:
    async with RawClient(fleet, fleet.new_key(), uuid4().hex) as client:
        await client.send_head(f"content-length: {MAX_BODY_BYTES + 1}")
        await client.read_to_end()
    check_too_large(client)


async def test_body_is_refused_when_it_turns_out_too_large(fleet: Fleet) -> None:
    async with RawClient(fleet, fleet.new_key(), uuid4().hex) as client:
        await client.send_head("transfer-encoding: chunked")
        for _ in range(2):
            size = MAX_BODY_BYTES // 2 + 1
            await client.send(b"%x\r\n%b\r\n" % (size, b" " * size))
        await client.read_to_end()  # though the body has not ended
    check_too_large(client)


def check_too_large(client: RawClient) -> None:
    assert client.complete
    assert client.status == 413
    assert client.headers[b"x-request-id"] == client.request_id.encode()
    assert json.loads(client.body)["error"]["code"] == "request_too_large"


async def test_compressed_body_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"content-encoding": "gzip"}
    answer = await client.post(COMPLETIONS, content=b"\x1f\x8b", headers=headers)
    assert refusal(answer) == (415, "unsupported_encoding")


async def test_too_many_headers_are_refused(client: httpx.AsyncClient) -> None:
    headers = [(f"x-{number}", "") for number in range(101)]
    answer = await client.get("/healthz", headers=headers)
    assert refusal(answer) == (431, "headers_too_large")
    assert "x-request-id" in answer.headers


async def test_no_such_route_or_method_is_an_error_like_all(
    client: httpx.AsyncClient,
) -> None:
    assert refusal(await client.get("/v1/nothing")) == (404, "not_found")
    assert refusal(await client.get(COMPLETIONS)) == (405, "method_not_allowed")
    assert refusal(await client.post("/v1/models")) == (405, "method_not_allowed")
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert refusal(await client.get(path)) == (404, "not_found")
