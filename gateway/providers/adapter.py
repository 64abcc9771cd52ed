"""An adapter: one wire dialect, as a body to send and what may be expected back."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import msgspec

from gateway.providers.provider import Call, Upstream
from gateway.providers.upstream import UpstreamClient

_decode_options = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a provider's dialect is.

    Attributes:
        encode: A call as the body to send, with the model's name at this provider;
            what it need not change keeps the client's bytes.
        reports_progress: It is asked for running usage in every event.
    """

    encode: Callable[[Call, str], bytes]
    reports_progress: bool


@dataclass(frozen=True, slots=True)
class AdaptedProvider:
    """A provider of the port, made of a client and an adapter.

    Attributes:
        client: Whoever made it closes it.
        name: As configured.
        adapter: Which dialect is spoken.
    """

    client: UpstreamClient
    name: str
    adapter: Adapter

    @property
    def reports_progress(self) -> bool:
        """See ``Provider.reports_progress``."""
        return self.adapter.reports_progress

    def open(self, call: Call, model: str) -> AbstractAsyncContextManager[Upstream]:
        """Send the call; see ``Provider.open``."""
        return self.client.open(
            call.endpoint,
            self.adapter.encode(call, model),
            call.request_id,
            stream=call.stream,
            on_send=call.on_send,
        )

    def redact(self, text: str) -> str:
        """See ``Provider.redact``."""
        return self.client.redact(text)


def stream_options(call: Call) -> dict[str, msgspec.Raw]:
    """What the client said in ``stream_options``: an object, null or nothing."""
    return _decode_options(call.members.get("stream_options", b"null")) or {}
