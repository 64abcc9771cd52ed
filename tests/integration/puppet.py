"""A provider that does what a test says, at the moment it says it."""

import json
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from tests.gateway.providers.raw_server import Peer, RawServer
from tests.integration.fleet import ARRIVE_SECONDS

WORD = " river"
USAGE = (7, 3)
"""Of every answer that ends well: tokens of the prompt and of the completion. Neither
is what the gateway would count, so a test can tell whose figures are charged."""
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_STILL_SECONDS = 0.2
"""Who takes nothing for so long is blocked."""
_PIECE = 16 * 1024
_SEND_BUFFER = 65_536


class Turn:
    """One request, and its answer so far.

    Args:
        peer: Whoever asked.
        tasks: To talk in, while the test does something else.

    Attributes:
        said: Words sent: each is an event, and a token.
        over: Nothing more will be sent.
    """

    def __init__(self, peer: Peer, tasks: TaskGroup) -> None:
        self._peer = peer
        self._tasks = tasks
        self._enough = anyio.Event()
        self._silent = anyio.Event()
        self._silent.set()
        self.over = anyio.Event()
        self.said = 0

    async def begin(self) -> None:
        """Send the head of a stream."""
        await self._peer.send(_HEAD)

    async def say(self, words: int, padding: int = 0) -> None:
        """Send events of one word each, larger by so many bytes than they need be."""
        for _ in range(words):
            self.said += 1
            choice = {"index": 0, "delta": {"content": WORD}, "finish_reason": None}
            await self.tell({"choices": [choice], "pad": "x" * padding})

    async def say_until_blocked(self) -> None:
        """Talk until nobody takes it any more; the rest goes on waiting."""
        self._peer.bound_send_buffer(_SEND_BUFFER)
        self._silent = anyio.Event()
        self._tasks.start_soon(self._talk)
        said = -1
        while said != self.said:
            said = self.said
            await anyio.sleep(_STILL_SECONDS)

    async def finish(self) -> None:
        """End well: finish reason, usage, ``[DONE]``, and the end of the body."""
        self._enough.set()
        await self._silent.wait()
        prompt, completion = USAGE
        usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        finish = {"index": 0, "delta": {}, "finish_reason": "stop"}
        await self.tell({"choices": [finish]})
        await self.tell({"choices": [], "usage": usage})
        await self.send(b"data: [DONE]\n\n")
        await self.send(b"")
        self.over.set()

    async def end(self) -> None:
        """End properly: an empty stream, a good one, or the connection after that."""
        if self.over.is_set():
            await self._peer.close()
        elif self.said:
            await self.finish()
        else:
            await self.send(b"")
            self.over.set()

    async def reset(self) -> None:
        """End the connection with a RST."""
        self._enough.set()
        await self._peer.reset()
        self.over.set()

    async def left(self) -> None:
        """Wait until the gateway has closed the connection."""
        self._enough.set()
        await self._peer.closed()
        self.over.set()

    async def comment(self) -> None:
        """Send a comment: a sign of life, and nothing else."""
        await self.send(b": still here\n\n")

    async def tell(self, event: Mapping[str, object]) -> None:
        """Send an event."""
        await self.send(b"data: %b\n\n" % json.dumps(event).encode())

    async def send(self, data: bytes) -> None:
        """Send a chunk of the body; none of no bytes, which is its end."""
        await self._peer.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def _talk(self) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            while not self._enough.is_set():
                await self.say(1, _PIECE)
        self._silent.set()


class Puppet:
    """Takes requests, and leaves the rest to the test."""

    def __init__(self) -> None:
        self._server = RawServer(self._take)
        self._came, self._turns = anyio.create_memory_object_stream[Turn](100)

    @property
    def url(self) -> str:
        """For an OpenAI client."""
        return self._server.url("/v1")

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._came, self._turns:
            await self._server.__aexit__(exc_type, exc, traceback)

    async def turn(self) -> Turn:
        """The next request."""
        with anyio.fail_after(ARRIVE_SECONDS):
            return await self._turns.receive()

    async def _take(self, peer: Peer) -> None:
        # It may be the test that closes.
        with suppress(anyio.ClosedResourceError):
            while True:
                await peer.request()
                async with anyio.create_task_group() as tasks:
                    turn = Turn(peer, tasks)
                    await self._came.send(turn)
                    await turn.over.wait()
