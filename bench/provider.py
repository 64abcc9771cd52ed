"""The provider behind every target: ``python -m bench.provider PORT``.

Raw asyncio and next to no logic, so that what it costs on the load's core does not hide
what the target does. ``GET /stats`` tells what it has seen.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import cast, override

import anyio
import httptools
import uvloop

from bench.wire import Events, Pace, whole_answer

_BURST = 1
"""Chunks in one write of a stream without gaps."""
_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 23:30:13 GMT\r\nserver: uvicorn\r\n"
    b"content-type: %s\r\n%s\r\n\r\n"
)
_STREAM_HEAD = _HEAD % (
    b"text/event-stream; charset=utf-8",
    b"transfer-encoding: chunked",
)
_LAST = b"0\r\n\r\n"


@dataclass
class Stats:
    """What the provider has seen.

    Attributes:
        sent: Bytes of stream it could get rid of.
        closed: By the number a request carries: when its connection was closed before
            its stream was over, in nanoseconds of the monotonic clock.
    """

    sent: int = 0
    closed: dict[str, int] = field(default_factory=dict)

    def body(self) -> bytes:
        return json.dumps({"sent": self.sent, "closed": self.closed}).encode()


class Conversation(asyncio.Protocol):
    """One connection: requests one after the other."""

    _transport: asyncio.Transport

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._path = b""
        self._events: Events | None = None  # of the stream being sent
        self._pace = Pace(1)
        self._number = self._next = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    @override
    def eof_received(self) -> None:
        self._closed()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._closed()

    @override
    def pause_writing(self) -> None:
        self._paused = True

    @override
    def resume_writing(self) -> None:
        self._paused = False
        if self._events is not None and self._pace.gap_ms == 0:
            self._send_due()

    def on_url(self, url: bytes) -> None:
        self._path = url
        self._body = []

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        now = time.monotonic_ns()
        if self._path == b"/stats":
            self._answer(self._stats.body())
            return
        asked = json.loads(b"".join(self._body))
        self._pace = Pace.of(asked["model"])
        if not asked.get("stream"):
            self._answer(whole_answer(self._pace, now))
            return
        options = asked.get("stream_options") or {}
        self._events = Events(
            self._pace,
            usage=bool(options.get("include_usage")),
            running=bool(options.get("continuous_usage_stats")),
        )
        self._number = asked["messages"][-1]["content"].rpartition("#")[2]
        self._next = 0
        self._due = self._loop.time()
        self._write(_STREAM_HEAD + _framed(self._events.role()))
        self._send_due()

    def _answer(self, body: bytes) -> None:
        length = b"content-length: %d" % len(body)
        self._transport.write(_HEAD % (b"application/json", length) + body)

    def _send_due(self) -> None:
        """Send what is due, and come back when more is."""
        self._timer = None
        events, now = self._events, time.monotonic_ns()
        if events is None:
            return
        if not self._paused:
            burst = 1 if self._pace.gap_ms else _BURST
            until = min(self._next + burst, self._pace.chunks)
            batch = [_framed(events.text(n, now)) for n in range(self._next, until)]
            self._next = until
            if until == self._pace.chunks:
                self._write(b"".join([*batch, *map(_framed, events.end()), _LAST]))
                self._events = None
                return
            self._write(b"".join(batch))
        if self._pace.gap_ms:
            self._due += self._pace.gap_ms / 1000
            self._timer = self._loop.call_at(self._due, self._send_due)
        elif not self._paused:
            self._timer = self._loop.call_later(0, self._send_due)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self._stats.sent += len(data)

    def _closed(self) -> None:
        if self._events is not None:
            self._events = None
            self._stats.closed[str(self._number)] = time.monotonic_ns()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _framed(event: bytes) -> bytes:
    """One event in one HTTP chunk, as vLLM sends them."""
    return b"%x\r\n%b\r\n" % (len(event), event)


async def serve(port: int) -> None:
    """Serve on 127.0.0.1 until cancelled."""
    stats = Stats()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Conversation(stats), "127.0.0.1", port, backlog=4096
    )
    async with server:
        await anyio.sleep_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
