import msgspec
import pytest

from gateway.providers.openai import encode
from gateway.providers.provider import Call, Endpoint


def call(body: bytes, *, stream: bool, default_cap: int | None = None) -> Call:
    return Call(
        endpoint=Endpoint.CHAT_COMPLETIONS,
        members=msgspec.json.decode(body, type=dict[str, msgspec.Raw]),
        stream=stream,
        request_id="id-1",
        default_cap=default_cap,
    )


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (b"", b'{"include_obfuscation":false,"include_usage":true}'),
        (
            b',"stream_options":{"include_obfuscation":true,"x":[1, 2]}',
            b'{"include_obfuscation":true,"x":[1, 2],"include_usage":true}',
        ),
    ],
)
def test_stream_asks_for_usage_and_no_padding_unless_the_client_decides(
    given: bytes, sent: bytes
) -> None:
    body = b'{"model":"m","stream":true%b}' % given
    assert encode(call(body, stream=True), "gpt") == (
        b'{"model":"gpt","stream":true,"stream_options":%b}' % sent
    )


def test_cap_has_openais_name_when_the_client_named_none() -> None:
    body = b'{"model":"m","temperature":1.0}'
    assert encode(call(body, stream=False, default_cap=7), "gpt") == (
        b'{"model":"gpt","temperature":1.0,"max_completion_tokens":7}'
    )
