"""OpenAI's API, and servers that follow it to the letter."""

import msgspec

from gateway.providers.adapter import Adapter, stream_options
from gateway.providers.provider import Call, Endpoint

_CAPS = {
    Endpoint.CHAT_COMPLETIONS: "max_completion_tokens",
    Endpoint.COMPLETIONS: "max_tokens",
}


def encode(call: Call, model: str) -> bytes:
    """Return the call's body for OpenAI.

    Usage is asked for in every stream, and the padding that hides token lengths from
    eavesdroppers is declined unless the client decides on it itself: it is relayed over
    TLS, and costs as many bytes as the text.
    """
    members: dict[str, object] = {**call.members, "model": model}
    if call.stream:
        members["stream_options"] = {
            "include_obfuscation": False,
            **stream_options(call),
            "include_usage": True,
        }
    if call.default_cap is not None:
        members[_CAPS[call.endpoint]] = call.default_cap
    return msgspec.json.encode(members)


OPENAI = Adapter(encode, reports_progress=False)
