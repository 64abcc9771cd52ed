"""The official Python client, asynchronous and not, finds what it expects."""

from collections.abc import AsyncIterator, Iterator
from itertools import islice
from uuid import uuid4

import pytest
from openai import (
    APIError,
    APIStatusError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    PermissionDeniedError,
    RateLimitError,
)
from openai.types.chat import ChatCompletionChunk, ChatCompletionUserMessageParam

from gateway.auth.principal import Limits
from gateway.demo.attempts import Attempt, End
from tests.integration.fleet import Fleet, Key, Plan, Terms, eventually, running
from tests.integration.raw_client import PROMPT_TOKENS, QUESTION, simulated_text

pytestmark = pytest.mark.anyio

TOKENS = 24
SPOILT_AFTER = 5
ONE_MODEL = Terms(models=("brief",))
USED_UP = Terms(Limits(tokens_per_day=1))
MODELS = {
    "brief": f"sim-r0-t{TOKENS}-f0",
    "steady": "sim-r50-t10000-f0",
    "busy": "sim-xstatus-429",
    "broken": "sim-xstatus-500-plain",
    "asleep": "sim-xstatus-503",
    "dying": f"sim-r0-f0-a{SPOILT_AFTER}-xerror-mid-stream",
    "cut": f"sim-r0-f0-a{SPOILT_AFTER}-xreset-mid-stream",
    "refusing": "sim-xerror-first",
}
MESSAGES = [ChatCompletionUserMessageParam(role="user", content=QUESTION)]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running(Plan(models=MODELS, terms=(ONE_MODEL, USED_UP))) as fleet:
        yield fleet


def asynchronous(fleet: Fleet, key: Key) -> AsyncOpenAI:
    base_url = f"{fleet.base_url}/v1"
    return AsyncOpenAI(base_url=base_url, api_key=key.secret, max_retries=0)


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[AsyncOpenAI]:
    async with asynchronous(fleet, fleet.new_key()) as client:
        yield client


@pytest.fixture
def blocking_client(fleet: Fleet) -> Iterator[OpenAI]:
    base_url, secret = f"{fleet.base_url}/v1", fleet.new_key().secret
    with OpenAI(base_url=base_url, api_key=secret, max_retries=0) as client:
        yield client


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(
        choice.delta.content or "" for chunk in chunks for choice in chunk.choices
    )


async def test_whole_answer_is_given(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="brief", messages=MESSAGES)
    (choice,) = answer.choices
    assert choice.message.content == simulated_text(TOKENS)
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == PROMPT_TOKENS
    assert answer.usage.completion_tokens == TOKENS


async def test_stream_is_given_without_usage(client: AsyncOpenAI) -> None:
    async with await client.chat.completions.create(
        model="brief", messages=MESSAGES, stream=True
    ) as stream:
        chunks = [chunk async for chunk in stream]
    assert text_of(chunks) == simulated_text(TOKENS)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.usage for chunk in chunks} == {None}


async def test_stream_ends_with_usage_when_it_is_asked_for(client: AsyncOpenAI) -> None:
    async with await client.chat.completions.create(
        model="brief",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *chunks, last = [chunk async for chunk in stream]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == PROMPT_TOKENS + TOKENS
    assert {chunk.usage for chunk in chunks} == {None}


async def test_stream_has_usage_throughout_when_it_is_asked_for(
    client: AsyncOpenAI,
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with await client.chat.completions.create(
        model="brief",
        messages=MESSAGES,
        stream=True,
        extra_body={"stream_options": options},
    ) as stream:
        usages = [chunk.usage async for chunk in stream]
    counts = [usage.completion_tokens for usage in usages if usage is not None]
    assert len(counts) == len(usages)
    assert (counts[0], counts[-1]) == (0, TOKENS)
    assert counts == sorted(counts)


async def test_every_choice_is_streamed_when_several_are_asked_for(
    fleet: Fleet,
) -> None:
    key = fleet.new_key()
    async with (
        asynchronous(fleet, key) as client,
        await client.chat.completions.create(
            model="brief", messages=MESSAGES, stream=True, n=3
        ) as stream,
    ):
        chunks = [chunk async for chunk in stream]
    ended = [
        one.index for chunk in chunks for one in chunk.choices if one.finish_reason
    ]
    assert sorted(ended) == [0, 1, 2]
    assert await fleet.used(key) == PROMPT_TOKENS + 3 * TOKENS


async def test_stream_helper_assembles_the_answer(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model="brief", messages=MESSAGES
    ) as stream:
        answer = await stream.get_final_completion()
    assert answer.choices[0].message.content == simulated_text(TOKENS)


async def test_raw_response_has_the_gateways_headers(client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model="brief", messages=MESSAGES, extra_headers={"x-request-id": "kept-1"}
    )
    assert raw.headers["x-request-id"] == raw.request_id == "kept-1"
    assert raw.headers["x-gateway-provider"] == "simulated"
    assert raw.headers["x-gateway-model"] == MODELS["brief"]
    assert raw.headers["x-gateway-attempts"] == "1"
    assert "server" not in raw.headers
    completion = raw.parse()
    assert completion.choices[0].message.content == simulated_text(TOKENS)


async def test_streams_raw_response_has_the_gateways_headers(
    client: AsyncOpenAI,
) -> None:
    create = client.chat.completions.with_streaming_response.create
    async with create(model="brief", messages=MESSAGES, stream=True) as raw:
        assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert raw.headers["cache-control"] == "no-cache, no-transform"
        assert raw.headers["x-accel-buffering"] == "no"
        wire = b"".join([part async for part in raw.iter_bytes()])
    assert wire.endswith(b"\n\ndata: [DONE]\n\n")


async def test_models_are_listed_and_found(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == list(MODELS)
    assert (await client.models.retrieve("brief")).object == "model"


@pytest.mark.parametrize(
    ("model", "error", "code"),
    [
        ("nowhere", NotFoundError, "model_not_found"),
        ("refusing", BadRequestError, "invalid_request"),
        ("busy", RateLimitError, "rate_limit_exceeded"),
        ("broken", InternalServerError, "upstream_error"),
        ("asleep", InternalServerError, "upstream_error"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_refusal_raises_the_clients_own_error(
    client: AsyncOpenAI,
    model: str,
    error: type[APIStatusError],
    code: str,
    stream: bool,
) -> None:
    with pytest.raises(error) as raised:
        await client.chat.completions.create(
            model=model, messages=MESSAGES, stream=stream
        )
    assert type(raised.value) is error
    assert raised.value.code == code
    assert raised.value.request_id


@pytest.mark.parametrize(
    ("terms", "error", "code"),
    [
        (ONE_MODEL, PermissionDeniedError, "model_not_allowed"),
        (USED_UP, RateLimitError, "insufficient_quota"),
    ],
)
async def test_terms_of_the_key_raise_the_clients_own_error(
    fleet: Fleet, terms: Terms, error: type[APIStatusError], code: str
) -> None:
    async with asynchronous(fleet, fleet.new_key(terms)) as client:
        with pytest.raises(error) as raised:
            await client.chat.completions.create(model="steady", messages=MESSAGES)
    assert raised.value.code == code


async def test_bad_member_is_named_by_the_error(client: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError) as raised:
        await client.chat.completions.create(
            model="brief", messages=MESSAGES, max_tokens=0
        )
    assert raised.value.param == "max_tokens"


async def test_unknown_key_raises_an_authentication_error(fleet: Fleet) -> None:
    stranger = Key("nobody", "sk-unknown", Terms())
    async with asynchronous(fleet, stranger) as client:
        with pytest.raises(AuthenticationError) as raised:
            await client.models.list()
    assert raised.value.code == "invalid_api_key"


async def test_client_does_not_repeat_what_waiting_cannot_cure(fleet: Fleet) -> None:
    name, code = "gateway_rejections_total", "insufficient_quota"
    before = await fleet.metric(name, by="reason")
    async with asynchronous(fleet, fleet.new_key(USED_UP)) as client:
        patient = client.with_options(max_retries=2)
        with pytest.raises(RateLimitError):
            await patient.chat.completions.create(model="brief", messages=MESSAGES)
    assert await fleet.metric(name, by="reason") - before == {code: 1}


@pytest.mark.parametrize(
    ("model", "code"), [("dying", "upstream_error"), ("cut", "upstream_truncated")]
)
async def test_failure_in_mid_stream_raises_after_what_came_before(
    client: AsyncOpenAI, model: str, code: str
) -> None:
    chunks: list[ChatCompletionChunk] = []

    async def collect() -> None:
        async with await client.chat.completions.create(
            model=model, messages=MESSAGES, stream=True
        ) as stream:
            async for chunk in stream:
                chunks.append(chunk)  # noqa: PERF401 - a comprehension would lose them

    with pytest.raises(APIError) as raised:
        await collect()
    assert text_of(chunks) == simulated_text(SPOILT_AFTER)
    assert not isinstance(raised.value, APIStatusError)
    assert raised.value.code == code


async def test_closing_a_stream_early_reaches_the_provider(fleet: Fleet) -> None:
    key, request_id = fleet.new_key(), uuid4().hex
    async with asynchronous(fleet, key) as client:
        stream = await client.chat.completions.create(
            model="steady",
            messages=MESSAGES,
            stream=True,
            extra_headers={"x-request-id": request_id},
        )
        seen = [await anext(aiter(stream)) for _ in range(3)]
        await stream.close()
        attempt = await closed(fleet, request_id)
    assert attempt.end is End.CLIENT_CLOSED
    assert len(seen) == 3
    charged = await fleet.used(key)
    assert PROMPT_TOKENS <= charged <= PROMPT_TOKENS + attempt.tokens


async def closed(fleet: Fleet, request_id: str) -> Attempt:
    return await eventually(
        lambda: fleet.attempt(request_id), lambda one: one.end is not None
    )


def test_blocking_client_is_given_a_whole_answer(blocking_client: OpenAI) -> None:
    answer = blocking_client.chat.completions.create(model="brief", messages=MESSAGES)
    assert answer.choices[0].message.content == simulated_text(TOKENS)


def test_blocking_client_is_given_a_stream(blocking_client: OpenAI) -> None:
    with blocking_client.chat.completions.create(
        model="brief",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert text_of(chunks) == simulated_text(TOKENS)
    assert [chunk.usage is not None for chunk in chunks].count(True) == 1


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("nowhere", NotFoundError),
        ("refusing", BadRequestError),
        ("busy", RateLimitError),
        ("broken", InternalServerError),
        ("dying", APIError),
    ],
)
def test_blocking_client_raises_its_own_error(
    blocking_client: OpenAI, model: str, error: type[APIError]
) -> None:
    with pytest.raises(error) as raised:
        list(
            blocking_client.chat.completions.create(
                model=model, messages=MESSAGES, stream=True
            )
        )
    assert type(raised.value) is error


def test_blocking_client_lists_the_models(blocking_client: OpenAI) -> None:
    assert [model.id for model in blocking_client.models.list()] == list(MODELS)


async def test_blocking_client_that_closes_early_reaches_the_provider(
    fleet: Fleet, blocking_client: OpenAI
) -> None:
    request_id = uuid4().hex
    with blocking_client.chat.completions.create(
        model="steady",
        messages=MESSAGES,
        stream=True,
        extra_headers={"x-request-id": request_id},
    ) as stream:
        assert len(list(islice(stream, 3))) == 3
    assert (await closed(fleet, request_id)).end is End.CLIENT_CLOSED
