"""The load: raw HTTP clients that check every chunk and note when it came."""

import asyncio
import itertools
import socket
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast, override

import anyio
import httptools

from bench.wire import CONTENT, DONE, TOKEN, Pace

LONGEST_SECONDS = 180.0
_STUCK_BYTES = 65_536
_numbers = itertools.count(time.monotonic_ns())


class AnswerBroken(Exception):
    """An answer is not what the provider sent, or is none at all."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where requests go.

    Attributes:
        port: On 127.0.0.1.
        headers: That every request must carry.
    """

    port: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked.

    Attributes:
        pace: That the provider shall keep.
        stream: Whether events are asked for.
        concurrency: Connections, each with one request at a time.
        requests: Per connection, one after the other.
        ramp_seconds: Over which the connections are opened.
        reads: Whether the answers are read at all.
    """

    pace: Pace
    stream: bool = True
    concurrency: int = 1
    requests: int = 1
    ramp_seconds: float = 0.0
    reads: bool = True


@dataclass(slots=True)
class Seen:
    """What came back.

    Attributes:
        answers: Whole ones.
        chunks: With text.
        delays_ns: Of each chunk, from provider to load.
        first_ns: Of each answer, from its request to its first text.
    """

    answers: int = 0
    chunks: int = 0
    delays_ns: array[int] = field(default_factory=lambda: array("q"))
    first_ns: array[int] = field(default_factory=lambda: array("q"))


class StreamCheck:
    """Reads one answer as it comes; raises AnswerBroken where a chunk is not next.

    Args:
        load: That was asked for.
        asked_ns: When; nothing can have been sent before.
    """

    def __init__(self, load: Load, asked_ns: int) -> None:
        self._load = load
        self._tail = b""
        self._sent_ns = asked_ns
        self._done = False
        self._next = 0

    def feed(self, data: bytes, now_ns: int) -> list[int]:
        """Return when the provider sent the chunks that are whole now."""
        if self._done:
            message = f"bytes after the end: {data[:200]!r}"
            raise AnswerBroken(message)
        data = self._tail + data
        if not self._load.stream:
            self._tail = data
            return []
        cut = data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
        events, self._tail = data[:cut], data[cut:]
        self._done = events.endswith(DONE)
        return self._check(CONTENT.findall(events), now_ns)

    def end(self, now_ns: int) -> int:
        """Return how many chunks there were, once the answer is over."""
        if not self._load.stream:
            self._check(TOKEN.findall(self._tail), now_ns)
        elif not self._done or self._tail:
            message = f"no proper end: {self._tail[-200:]!r}"
            raise AnswerBroken(message)
        if self._next != self._load.pace.chunks:
            message = f"{self._next} chunks of {self._load.pace.chunks}"
            raise AnswerBroken(message)
        return self._next

    def _check(self, found: list[tuple[bytes, bytes]], now_ns: int) -> list[int]:
        sent = []
        for number, stamp in found:
            at = int(stamp)
            if int(number) != self._next or not self._sent_ns <= at <= now_ns:
                message = f"after chunk {self._next - 1} came {number!r}@{stamp!r}"
                raise AnswerBroken(message)
            self._next += 1
            self._sent_ns = at
            sent.append(at)
        return sent


class Client(asyncio.Protocol):
    """One connection, which asks, checks what comes, and asks again.

    Attributes:
        number: That its requests carry.
    """

    _transport: asyncio.Transport
    _check: StreamCheck

    def __init__(self, crowd: "Crowd") -> None:
        self.number = str(next(_numbers))
        self._crowd = crowd
        self._load = crowd.load
        self._request = _request(crowd.door, crowd.load, self.number)
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._left = crowd.load.requests
        self._asked_ns = 0
        self._has_begun = self._is_whole = False

    def leave(self) -> int:
        """Close the connection, and return when."""
        self._left = 0
        now = time.monotonic_ns()
        self._transport.abort() if not self._load.reads else self._transport.close()
        return now

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._load.reads:
            # Else megabytes wait in this socket, and to close it takes milliseconds.
            found = cast("socket.socket", transport.get_extra_info("socket"))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _STUCK_BYTES)
            # Not at once: uvloop starts to read after this call.
            asyncio.get_running_loop().call_soon(self._transport.pause_reading)
        self._ask()

    @override
    def data_received(self, data: bytes) -> None:
        if not self._left:
            return
        try:
            self._read(data, time.monotonic_ns())
        except (AnswerBroken, httptools.HttpParserError) as error:
            self._left = 0
            self._crowd.ended(error)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._left:
            self._crowd.ended(exc or AnswerBroken("the connection was closed"))

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._is_whole = True

    def _ask(self) -> None:
        self._asked_ns = time.monotonic_ns()
        self._check = StreamCheck(self._load, self._asked_ns)
        self._has_begun = self._is_whole = False
        self._transport.write(self._request)

    def _read(self, data: bytes, now: int) -> None:
        self._parser.feed_data(data)
        body = b"".join(self._pieces)
        self._pieces.clear()
        if body and self._parser.get_status_code() != 200:
            message = f"{self._parser.get_status_code()}: {body[:500]!r}"
            raise AnswerBroken(message)
        if body and (sent := self._check.feed(body, now)):
            self._note(sent, now)
        if self._is_whole:
            self._check.end(now)
            self._left -= 1
            self._crowd.ended(None)
            if self._left:
                self._ask()

    def _note(self, sent: list[int], now: int) -> None:
        seen = self._crowd.seen
        seen.chunks += len(sent)
        seen.delays_ns.extend([now - at for at in sent])
        if not self._has_begun:
            self._has_begun = True
            seen.first_ns.append(now - self._asked_ns)
            self._crowd.began()


class Crowd:
    """The clients of one load; leaving the block closes their connections.

    Args:
        door: Where they go.
        load: That they make together.
        seen: To add to.
    """

    def __init__(self, door: Door, load: Load, seen: Seen | None = None) -> None:
        self.door = door
        self.load = load
        self.seen = seen or Seen()
        self.clients: list[Client] = []
        self._wanted = load.concurrency * load.requests
        self._begun = self._answered = 0
        self._error: Exception | None = None
        self._changed = anyio.Event()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        start, step = loop.time(), self.load.ramp_seconds / self.load.concurrency
        try:
            for index in range(self.load.concurrency):
                await anyio.sleep(max(0.0, start + index * step - loop.time()))
                _, client = await loop.create_connection(
                    lambda: Client(self), "127.0.0.1", self.door.port
                )
                self.clients.append(client)
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
        await anyio.lowlevel.checkpoint()

    async def begun(self) -> None:
        """Wait until each connection's first text is there."""
        await self._until(lambda: self._begun >= self.load.concurrency)

    async def finish(self) -> Seen:
        """Wait until all answers are whole; raises what went wrong with one."""
        await self._until(lambda: self._answered == self._wanted)
        return self.seen

    def began(self) -> None:
        """Take note of a first text."""
        self._begun += 1
        if self._begun >= self.load.concurrency:
            self._changed.set()

    def ended(self, error: Exception | None) -> None:
        """Take note of the end of an answer."""
        self._error = self._error or error
        self._answered += 1
        self.seen.answers += 1
        if error or self._answered == self._wanted:
            self._changed.set()

    async def _until(self, holds: Callable[[], bool]) -> None:
        with anyio.fail_after(LONGEST_SECONDS):
            while self._error is None and not holds():
                await self._changed.wait()
                self._changed = anyio.Event()
        if self._error is not None:
            raise self._error

    def _close(self) -> None:
        for client in self.clients:
            client.leave()


async def ask(door: Door, path: str) -> bytes:
    """The body of a GET."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        size = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return await reader.readexactly(int(size))
    finally:
        writer.close()
        await writer.wait_closed()


def _request(door: Door, load: Load, number: str) -> bytes:
    stream = "true" if load.stream else "false"
    body = (
        f'{{"model":"{load.pace.model}","stream":{stream},'
        f'"max_tokens":{load.pace.chunks},'
        f'"messages":[{{"role":"user","content":"Tell me about rivers #{number}"}}]}}'
    )
    headers = "".join(f"{name}: {value}\r\n" for name, value in door.headers.items())
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\n{headers}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()
