"""vLLM: an OpenAI-compatible server that reports usage with every event if asked."""

from contextlib import AbstractAsyncContextManager

import msgspec

from gateway.providers.provider import Call, Upstream
from gateway.providers.upstream import UpstreamClient

_STREAM_OPTIONS = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)


class VllmProvider:
    """One vLLM server, or a service in front of several.

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
        """Always: ``continuous_usage_stats`` is asked for."""
        return True

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
    """Return the call's body for vLLM: what is not changed keeps the client's bytes.

    ``stream_options`` must be an object or null. Without ``stream`` vLLM refuses it, so
    there none is added, and a client's own goes through for the error it deserves.
    """
    members: dict[str, object] = {**call.members, "model": model}
    if call.stream:
        options = _STREAM_OPTIONS.decode(call.members.get("stream_options", b"null"))
        members["stream_options"] = {
            **(options or {}),
            "include_usage": True,
            "continuous_usage_stats": True,
        }
    if call.default_cap is not None:
        members["max_tokens"] = call.default_cap
    return msgspec.json.encode(members)
