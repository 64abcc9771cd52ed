"""What tests of providers share: whom to ask, what to ask, a server that takes note."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, get_args

import anyio
import msgspec

from gateway.providers.provider import Call, Endpoint, Provider, Upstream
from gateway.providers.registry import ProviderConfig, build_provider
from gateway.settings import ProviderSettings
from streaming.errors import UpstreamTruncated
from tests.gateway.providers.raw_server import AT_ONCE, Peer

ADAPTERS: tuple[str, ...] = get_args(
    ProviderSettings.model_fields["adapter"].annotation
)
"""Every one that configuration can name."""
CANARY = "sk-canary-5up3r-s3cr3t"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
"""The head of a stream that ends with its connection."""
CHAT = b'{"model":"m","messages":[]}'


@asynccontextmanager
async def provider_at(
    adapter: str,
    url: str,
    *,
    api_key: str | None = CANARY,
    connect_seconds: float = 2.0,
) -> AsyncIterator[Provider]:
    """A provider whose server is there."""
    config = ProviderConfig(
        name="one",
        adapter=adapter,
        base_url=url,
        api_key=api_key,
        connect_seconds=connect_seconds,
        buffer_bytes=65_536,
    )
    provider = build_provider(config)
    async with aclosing(provider.client):
        yield provider


def call_of(
    body: bytes = CHAT,
    *,
    endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS,
    stream: bool = False,
    default_cap: int | None = None,
    on_send: Callable[[], None] = lambda: None,
) -> Call:
    """A call with this body, as a client would have sent it."""
    return Call(
        endpoint=endpoint,
        members=msgspec.json.decode(body, type=dict[str, msgspec.Raw]),
        stream=stream,
        request_id="id-1",
        default_cap=default_cap,
        on_send=on_send,
    )


async def enter(provider: Provider, call: Call | None = None) -> None:
    """Open an answer, and leave it at once."""
    async with provider.open(call or call_of(stream=True), "theirs"):
        pass


async def body_of(upstream: Upstream) -> tuple[bytes, bool]:
    """The rest of a body, and whether it came to its proper end."""
    content = b""
    while True:
        try:
            content += await upstream.body.receive()
        except anyio.EndOfStream:
            return content, True
        except UpstreamTruncated:
            return content, False


class Noting:
    """A server's script: gives the same answer again and again.

    Attributes:
        requests: As they came, heads and bodies.
    """

    def __init__(self, answer: bytes = OK) -> None:
        self.requests: list[bytes] = []
        self._gone = anyio.Event()
        self._answer = answer

    async def __call__(self, peer: Peer) -> None:
        try:
            while True:
                self.requests.append(await peer.request())
                await peer.send(self._answer)
        finally:
            self._gone.set()

    async def gone(self) -> None:
        """Return once a client has closed a connection, which it must do at once."""
        with anyio.fail_after(AT_ONCE):
            await self._gone.wait()

    @property
    def lines(self) -> dict[bytes, bytes]:
        """The fields of the only request's head, names in lower case."""
        (request,) = self.requests
        fields = [
            line.partition(b": ")
            for line in request.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        ]
        found = {name.lower(): value for name, _, value in fields}
        assert len(found) == len(fields)
        return found

    @property
    def body(self) -> bytes:
        """Of the only request."""
        (request,) = self.requests
        return request.partition(b"\r\n\r\n")[2]

    @property
    def members(self) -> dict[str, Any]:
        """Of the only request's body."""
        members = json.loads(self.body)
        assert isinstance(members, dict)
        return members
