from contextlib import aclosing

import msgspec
import pytest

from gateway.providers.provider import Call, Endpoint, Provider
from gateway.providers.registry import ProviderConfig, build_provider
from gateway.providers.vllm import encode
from tests.gateway.providers.raw_server import Peer, RawServer

CANARY = "sk-canary-5up3r-s3cr3t"


def call(body: bytes, *, stream: bool, default_cap: int | None = None) -> Call:
    return Call(
        endpoint=Endpoint.CHAT_COMPLETIONS,
        members=msgspec.json.decode(body, type=dict[str, msgspec.Raw]),
        stream=stream,
        request_id="id-1",
        default_cap=default_cap,
    )


def test_values_keep_the_clients_bytes() -> None:
    body = (
        b'{"messages" : [ {"role":"user","content":"\\u00e9 \xc3\xa9 \\/"} ],\n'
        b' "model":"chat-small", "temperature":1.0e-0,'
        b' "x": {"b":1 , "a":12345678901234567890123}}'
    )
    assert encode(call(body, stream=False), "org/model-7b") == (
        b'{"messages":[ {"role":"user","content":"\\u00e9 \xc3\xa9 \\/"} ],'
        b'"model":"org/model-7b","temperature":1.0e-0,'
        b'"x":{"b":1 , "a":12345678901234567890123}}'
    )


WANTED = b'"include_usage":true,"continuous_usage_stats":true'


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (b"", b"{" + WANTED + b"}"),
        (b',"stream_options":null', b"{" + WANTED + b"}"),
        (b',"stream_options":{}', b"{" + WANTED + b"}"),
        (b',"stream_options":{"include_usage":false}', b"{" + WANTED + b"}"),
        (
            b',"stream_options":{"x": [1, 2],"continuous_usage_stats":false}',
            b'{"x":[1, 2],"continuous_usage_stats":true,"include_usage":true}',
        ),
    ],
)
def test_stream_asks_for_usage_and_keeps_other_options(
    given: bytes, sent: bytes
) -> None:
    body = b'{"model":"m","stream":true%b}' % given
    assert encode(call(body, stream=True), "v") == (
        b'{"model":"v","stream":true,"stream_options":%b}' % sent
    )


@pytest.mark.parametrize("given", [b"", b',"stream_options":{"include_usage": true}'])
def test_options_are_left_alone_when_no_stream_is_asked_for(given: bytes) -> None:
    body = b'{"model":"m"%b}' % given
    assert encode(call(body, stream=False), "m") == body


@pytest.mark.parametrize("given", [b"", b',"max_tokens":null'])
def test_reserved_cap_is_sent_when_the_client_named_none(given: bytes) -> None:
    body = b'{"model":"m"%b}' % given
    sent = encode(call(body, stream=False, default_cap=4096), "m")
    assert sent == b'{"model":"m","max_tokens":4096}'


def test_cap_is_the_clients_when_it_named_one() -> None:
    body = b'{"model":"m","max_completion_tokens":7}'
    assert encode(call(body, stream=False), "m") == body


def config(base_url: str) -> ProviderConfig:
    return ProviderConfig(
        name="vllm-a",
        adapter="vllm",
        base_url=base_url,
        api_key=CANARY,
        connect_seconds=2.0,
        buffer_bytes=65536,
    )


@pytest.mark.anyio
async def test_provider_speaks_to_its_server() -> None:
    requests = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.answer(b"{}")

    async with RawServer(script) as server:
        provider = build_provider(config(server.url("/v1/")))
        async with aclosing(provider.client):
            opened = provider.open(call(b'{"model":"m"}', stream=False), "v")
            async with opened as upstream:
                assert upstream.status == 200
    assert requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert requests[0].endswith(b'\r\n\r\n{"model":"v"}')


def test_provider_is_what_configuration_says() -> None:
    provider: Provider = build_provider(config("http://127.0.0.1:1/v1"))
    assert provider.name == "vllm-a"
    assert provider.reports_progress
    assert CANARY not in repr(config("http://127.0.0.1:1/v1"))
