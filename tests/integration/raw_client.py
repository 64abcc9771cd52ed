"""A client that does to its connection exactly what a test says, and nothing else."""

import json
import re
import socket
import struct
from enum import Enum
from types import TracebackType
from typing import Self

import anyio
import httptools
from anyio.abc import SocketAttribute, SocketStream

from gateway.demo.text import passage
from tests.integration.fleet import Fleet, Key

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CONTENT = re.compile(rb'"delta":\{"content":("(?:[^"\\]|\\.)*")\}')


class Leave(Enum):
    """How a client goes away."""

    FIN = "fin"
    RST = "rst"
    HALF_CLOSE = "half-close"


class RawClient:
    """One connection with one request on it; reads only what it is told to.

    Args:
        fleet: Whose gateway it connects to.
        key: Whose secret it presents.
        request_id: By which the provider's record is found.
        at: Which of its gateways.

    Attributes:
        status: Of the answer, 0 before it is there.
        headers: Of the answer, names in lower case.
        body: Of the answer as far as it was read, without HTTP framing.
        complete: Whether all of the answer was read.
    """

    _stream: SocketStream

    def __init__(self, fleet: Fleet, key: Key, request_id: str, at: int = 0) -> None:
        self._address = fleet.gateways[at].address
        self._secret = key.secret
        self._parser = httptools.HttpResponseParser(self)
        self.request_id = request_id
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = bytearray()
        self.complete = False

    async def __aenter__(self) -> Self:
        self._stream = await anyio.connect_tcp(*self._address)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await anyio.aclose_forcefully(self._stream)

    async def ask(self, model: str, **members: object) -> None:
        """Send a chat request, streamed unless a member says otherwise."""
        body = json.dumps({**chat(model), "stream": True, **members}).encode()
        await self.send_head(f"content-length: {len(body)}")
        await self.send(body)

    async def send_head(self, *lines: str) -> None:
        """Send the head of a chat request, with these lines about its body."""
        head = (
            "POST /v1/chat/completions HTTP/1.1",
            "host: gateway",
            f"authorization: Bearer {self._secret}",
            f"x-request-id: {self.request_id}",
            *lines,
            "\r\n",
        )
        await self.send("\r\n".join(head).encode())

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self._stream.send(data)

    async def read(self) -> None:
        """Read what is there, at least a byte.

        Raises:
            anyio.EndOfStream: The gateway has closed.
            anyio.BrokenResourceError: It has reset the connection.
        """
        self._parser.feed_data(await self._stream.receive())

    async def read_until(self, marker: bytes) -> None:
        """Read until the body has the marker in it."""
        while marker not in self.body:
            await self.read()

    async def read_to_end(self) -> None:
        """Read all of the answer, or as much as comes before the connection ends."""
        while not self.complete:
            try:
                await self.read()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async def leave(self, how: Leave) -> None:
        """Go away; after a half-close this side could still read, but does not."""
        raw: socket.socket = self._stream.extra(SocketAttribute.raw_socket)
        match how:
            case Leave.FIN:
                await anyio.aclose_forcefully(self._stream)
            case Leave.RST:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                await anyio.aclose_forcefully(self._stream)
            case Leave.HALF_CLOSE:
                await self._stream.send_eof()

    @property
    def text(self) -> str:
        """The content of all whole events that were read."""
        events = self.body.rpartition(b"\n\n")[0]
        return "".join(json.loads(found) for found in _CONTENT.findall(events))

    @property
    def tokens(self) -> int:
        """How many tokens that text has, which must be the provider's."""
        text, tokens = self.text, 0
        while len(passage(0, tokens)) < len(text):
            tokens += 1
        assert passage(0, tokens) == text
        return tokens

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take note, for the parser."""
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Take note, for the parser."""
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Take note, for the parser."""
        self.body += data

    def on_message_complete(self) -> None:
        """Take note, for the parser."""
        self.complete = True


def chat(model: str) -> dict[str, object]:
    """A chat request without ``stream``."""
    return {"model": model, "messages": [{"role": "user", "content": QUESTION}]}


QUESTION = "Why are the walls of a lock so thick?"
PROMPT_TOKENS = 4 + len(QUESTION.split())
"""Of ``chat``'s prompt as the simulated provider counts: a word is a token."""
OUR_PROMPT_TOKENS = 3 + 1 + 10 + 3
"""As the gateway counts: a message, its role, its content, the reply."""


def simulated_text(tokens: int) -> str:
    """What the simulated provider says in an answer of that many tokens."""
    return passage(0, tokens)
