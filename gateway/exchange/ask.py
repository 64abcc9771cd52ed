"""What a client asks for, parsed and valid."""

from collections.abc import Mapping
from copy import replace

import msgspec

from gateway.auth.principal import Principal
from gateway.providers.provider import Endpoint
from gateway.telemetry.metrics import Mode
from streaming.stages.usage_view import UsageWish


class Ask(msgspec.Struct, frozen=True):
    """One request.

    Attributes:
        principal: Who pays.
        endpoint: What is asked for.
        model: The public name.
        body: The request, parsed.
        members: Its top-level members in the client's own bytes.
        stream: Whether an event stream is asked for.
        usage: What it wants to see of usage.
        request_id: Of this request, in all logs and at the provider.
        session: What its conversation is called, where that decides who answers.
    """

    principal: Principal
    endpoint: Endpoint
    model: str
    body: Mapping[str, object]
    members: Mapping[str, msgspec.Raw]
    stream: bool
    usage: UsageWish
    request_id: str
    session: str = ""

    def without_body(self) -> "Ask":
        """The same request, to be kept while it is answered: bodies are large."""
        return replace(self, body={}, members={})

    @property
    def mode(self) -> Mode:
        """The metric's word for it."""
        return Mode.STREAM if self.stream else Mode.JSON
