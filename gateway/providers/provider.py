"""The provider port: what the gateway above asks of any upstream."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Protocol

import msgspec
from anyio.abc import ByteReceiveStream


class Endpoint(StrEnum):
    """What is asked for; the value is the path below a provider's base URL."""

    CHAT_COMPLETIONS = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"


class Call(msgspec.Struct, frozen=True):
    """One request as the client sent it, and the little that may be changed in it.

    Attributes:
        endpoint: What is asked for.
        members: The request's top-level members, each value in the client's own bytes.
        stream: Whether an event stream is asked for.
        request_id: Goes to the provider as ``x-request-id``.
        default_cap: Output tokens per choice to ask for; None when the client named
            a cap itself.
        on_send: Called when the request is about to be written: from then on it may
            have reached the provider.
    """

    endpoint: Endpoint
    members: Mapping[str, msgspec.Raw]
    stream: bool
    request_id: str
    default_cap: int | None
    on_send: Callable[[], None] = lambda: None


class Upstream(msgspec.Struct, frozen=True):
    """A provider's open answer: its head has arrived, its body has not been read.

    Attributes:
        status: HTTP status, 200 to 599.
        headers: Lower-case names; of a repeated header the last value.
        body: Reads pull from the socket, so not reading is back-pressure. ``receive``
            raises ``anyio.EndOfStream`` at the body's proper end and
            ``UpstreamTruncated`` when it ends in any other way.
        attempts: How often the request was written: 2 when a kept-alive connection
            turned out to be closed.
        is_whole: Tells whether all of the body has arrived, be it read or not.
    """

    status: int
    headers: Mapping[str, str]
    body: ByteReceiveStream
    attempts: int = 1
    is_whole: Callable[[], bool] = lambda: False


class Provider(Protocol):
    """One configured upstream."""

    @property
    def name(self) -> str:
        """The configured name."""
        ...

    @property
    def reports_progress(self) -> bool:
        """Whether the gateway asked for running usage in every event."""
        ...

    def redact(self, text: str) -> str:
        """The text without this provider's secret."""
        ...

    def open(self, call: Call, model: str) -> AbstractAsyncContextManager[Upstream]:
        """Send the call, and hold the answer open for the length of the block.

        Entering returns as soon as the answer's head is there. Leaving the block
        closes the socket unless the body was read to its end, whatever happened
        inside.

        Args:
            call: What the client asked for.
            model: The model's name at this provider.

        Raises:
            UpstreamUnreachable: The connection was refused.
            UpstreamLost: It ended before any byte of an answer.
            ConnectTimeout: It was not made in time.
            Overloaded: This process can open no more connections.
            UpstreamInvalid: The answer is not HTTP, or is compressed.
        """
        ...
