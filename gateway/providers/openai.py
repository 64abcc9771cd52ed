"""OpenAI's API, and servers that follow it to the letter."""

from contextlib import AbstractAsyncContextManager

import msgspec

from gateway.providers.provider import Call, Endpoint, Upstream
from gateway.providers.upstream import UpstreamClient

_CAPS = {
    Endpoint.CHAT_COMPLETIONS: "max_completion_tokens",
    Endpoint.COMPLETIONS: "max_tokens",
}
_STREAM_OPTIONS = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)


class OpenAIProvider:
    """OpenAI, or whoever speaks its API.

    Args:
        client: Whoever made it closes it.
        name: As configured.

    Attributes:
        client: The same.
    """

    def __init__(self, client: UpstreamClient, name: str) -> None:
        self.client = client
        self._name = name

    @property
    def name(self) -> str:
        """The configured name."""
        return self._name

    @property
    def reports_progress(self) -> bool:
        """Never: usage comes once, in an event of its own."""
        return False

    def open(self, call: Call, model: str) -> AbstractAsyncContextManager[Upstream]:
        """Send the call; see ``Provider.open``."""
        return self.client.open(
            call.endpoint,
            encode(call, model),
            call.request_id,
            stream=call.stream,
            on_send=call.on_send,
        )

    def redact(self, text: str) -> str:
        """See ``Provider.redact``."""
        return self.client.redact(text)


def encode(call: Call, model: str) -> bytes:
    """Return the call's body for OpenAI: what is not changed keeps the client's bytes.

    Usage is asked for in every stream, and the padding that hides token lengths from
    eavesdroppers is declined unless the client decides on it itself: it is relayed over
    TLS, and costs as many bytes as the text.
    """
    members: dict[str, object] = {**call.members, "model": model}
    if call.stream:
        options = _STREAM_OPTIONS.decode(call.members.get("stream_options", b"null"))
        members["stream_options"] = {
            "include_obfuscation": False,
            **(options or {}),
            "include_usage": True,
        }
    if call.default_cap is not None:
        members[_CAPS[call.endpoint]] = call.default_cap
    return msgspec.json.encode(members)
