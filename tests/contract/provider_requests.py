"""What any provider must send: the first half of ``provider_contract``."""

import json

import pytest

from gateway.providers.provider import Endpoint
from tests.contract.provider_desk import CANARY, Noting, call_of, enter, provider_at
from tests.gateway.providers.raw_server import RawServer
from tests.integration.fleet import free_port

_OURS = {
    b"host",
    b"user-agent",
    b"accept",
    b"accept-encoding",
    b"authorization",
    b"content-length",
    b"content-type",
    b"x-request-id",
}
_CAPS = {("openai", Endpoint.CHAT_COMPLETIONS): "max_completion_tokens"}
"""Where the cap is not called ``max_tokens``."""
_FIRST_OPTIONS = {"openai": {"include_obfuscation": False}}
_LAST_OPTIONS = {
    "openai": {"include_usage": True},
    "vllm": {"include_usage": True, "continuous_usage_stats": True},
}
"""What every stream is asked for: where a client may object, and where it may not."""
_AMBIENT = (
    "OPENAI_ADMIN_KEY",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "OPENAI_CUSTOM_HEADERS",
    "OPENAI_ORG_ID",
    "OPENAI_PROJECT_ID",
    "HTTP_PROXY",
    "ALL_PROXY",
)
"""Variables by which some client would be configured behind our back."""


@pytest.mark.anyio
class RequestContract:
    """Of requests."""

    @pytest.mark.parametrize("stream", [True, False])
    async def test_header_is_ours_and_says_who_asks(
        self, adapter: str, stream: bool
    ) -> None:
        noting = Noting()
        async with (
            RawServer(noting) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            await enter(provider, call_of(stream=stream))
        assert noting.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        lines = noting.lines
        assert lines.keys() == _OURS
        assert lines[b"host"] == b"127.0.0.1:%d" % server.port
        assert lines[b"user-agent"].startswith(b"sluice/")
        accept = b"text/event-stream" if stream else b"application/json"
        assert lines[b"accept"] == accept
        assert lines[b"accept-encoding"] == b"identity"
        assert lines[b"authorization"] == b"Bearer " + CANARY.encode()
        assert lines[b"content-type"] == b"application/json"
        assert lines[b"x-request-id"] == b"id-1"

    async def test_no_key_is_sent_when_there_is_none(self, adapter: str) -> None:
        noting = Noting()
        async with (
            RawServer(noting) as server,
            provider_at(adapter, server.url("/v1"), api_key=None) as provider,
        ):
            await enter(provider)
        assert noting.lines.keys() == _OURS - {b"authorization"}

    async def test_environment_changes_nothing(
        self, adapter: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for variable in _AMBIENT:
            for name in (variable, variable.lower()):
                monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}/x-ambient: 1")
        noting = Noting()
        async with (
            RawServer(noting) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            await enter(provider)
        assert b"ambient" not in noting.requests[0]
        assert noting.lines[b"authorization"] == b"Bearer " + CANARY.encode()

    @pytest.mark.parametrize("endpoint", Endpoint)
    async def test_members_keep_the_clients_bytes_but_for_the_model(
        self, adapter: str, endpoint: Endpoint
    ) -> None:
        kept = (
            b'"messages":[ {"role":"user","content":"\\u00e9 \xc3\xa9 \\/"} ],'
            b'"temperature":1.0e-0,"stream":null,"user":"a  b",'
            b'"x":{"b":1 , "a":12345678901234567890123}}'
        )
        noting = Noting()
        async with (
            RawServer(noting) as server,
            provider_at(adapter, server.url("/v1/")) as provider,
        ):
            call = call_of(b'{"model" : "ours",\n' + kept, endpoint=endpoint)
            await enter(provider, call)
        assert noting.requests[0].startswith(b"POST /v1/%b HTTP" % endpoint.encode())
        assert noting.body == b'{"model":"theirs",' + kept

    async def test_request_arrives_whole_when_it_is_large(self, adapter: str) -> None:
        text = b"river " * 200_000
        noting = Noting()
        async with (
            RawServer(noting) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            await enter(provider, call_of(b'{"model":"m","prompt":"%b"}' % text))
        assert noting.body == b'{"model":"theirs","prompt":"%b"}' % text

    @pytest.mark.parametrize("endpoint", list(Endpoint)[:2])
    @pytest.mark.parametrize("given", [b"", b',"max_tokens":null'])
    async def test_cap_has_the_name_that_the_server_knows(
        self, adapter: str, endpoint: Endpoint, given: bytes
    ) -> None:
        noting = Noting()
        async with (
            RawServer(noting) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            body = b'{"model":"m"%b}' % given
            call = call_of(body, endpoint=endpoint, default_cap=7)
            await enter(provider, call)
        name = _CAPS.get((adapter, endpoint), "max_tokens")
        sent = {key: cap for key, cap in noting.members.items() if cap is not None}
        assert sent == {"model": "theirs", name: 7}

    @pytest.mark.parametrize(
        "given",
        [
            b"",
            b',"stream_options":null',
            b',"stream_options":{"include_usage":false,"x":[1, 2.0]}',
            b',"stream_options":{"include_obfuscation":true}',
            b',"stream_options":{"continuous_usage_stats":false}',
        ],
    )
    async def test_stream_asks_for_usage_and_keeps_other_options(
        self, adapter: str, given: bytes
    ) -> None:
        noting = Noting()
        async with (
            RawServer(noting) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            call = call_of(b'{"model":"m","stream":true%b}' % given, stream=True)
            await enter(provider, call)
        asked = json.loads(b"{%b}" % given[1:]).get("stream_options") or {}
        assert noting.members["stream_options"] == {
            **_FIRST_OPTIONS.get(adapter, {}),
            **asked,
            **_LAST_OPTIONS[adapter],
        }
        assert (b"[1, 2.0]" in noting.body) is ("x" in asked)

    async def test_options_are_the_clients_when_there_is_no_stream(
        self, adapter: str
    ) -> None:
        noting = Noting()
        body = b'{"model":"m","stream_options":{"include_usage" : 1}}'
        async with (
            RawServer(noting) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            await enter(provider, call_of(body))
        assert noting.body == body.replace(b'"m"', b'"theirs"')
