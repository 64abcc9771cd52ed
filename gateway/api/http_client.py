"""The client at the other end of an HTTP connection."""

from collections.abc import Mapping
from typing import override

from anyio.abc import TaskGroup
from starlette.types import Message, Send

from gateway.api.connection import transport_of, unsent_bytes
from gateway.api.error_response import error_body, error_frame, error_headers
from gateway.exchange.client import Client
from streaming.errors import Fault
from streaming.stage import Batch

HEARTBEAT = b": keep-alive\n\n"
PIECE_BYTES = 65_536
"""Of a whole answer in one write: between two a client that stalls is noticed."""
_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}


class HttpClient(Client):
    """Answers over ASGI.

    The head goes through ``send``, and so through every middleware. The body's chunks
    go through ``raw_send``, the server's own: a middleware has nothing to add to a
    token, and each wrapper around ``send`` would be paid for every one of them.

    Args:
        send: As handed to the route.
        raw_send: As the server handed it to the application.
        beats_early: A heartbeat may commit status 200 before the first event.
    """

    def __init__(self, send: Send, raw_send: Send, *, beats_early: bool) -> None:
        self._send = send
        self._raw_send = raw_send
        self._beats_early = beats_early
        self._headers: dict[str, str] = {}
        self._started = False
        self._whole = False  # its length has been announced
        self._ended = False
        self._tasks: TaskGroup | None = None

    def beat_in(self, tasks: TaskGroup) -> None:
        """Where heartbeats may be sent from."""
        self._tasks = tasks

    @property
    @override
    def started(self) -> bool:
        return self._started

    @property
    @override
    def answered(self) -> bool:
        return self._ended

    @override
    def describe(self, headers: Mapping[str, str]) -> None:
        self._headers.update(headers)

    @override
    async def send(self, item: Batch) -> None:
        if not self._started:
            await self._start(200, _STREAM_HEADERS)
        await self._raw_send(_chunk(b"".join([event.frame.wire for event in item])))

    @override
    async def answer(self, headers: Mapping[str, str], body: bytes) -> None:
        await self._give(200, headers, body)

    @override
    async def fail(self, fault: Fault) -> None:
        if self._ended:
            return
        if not self._started:
            await self._give(fault.status, error_headers(fault), error_body(fault))
        elif self._whole:
            self.abort()
        else:
            self._ended = True
            await self._raw_send(_chunk(error_frame(fault), last=True))

    @override
    async def aclose(self) -> None:
        if self._started and not self._ended:
            await self._raw_send(_chunk(b"", last=True))
            self._ended = True

    @override
    def abort(self) -> None:
        self._ended = True
        if (transport := transport_of(self._raw_send)) is not None:
            transport.abort()

    @override
    def beat(self) -> None:
        if self._tasks is not None and (self._started or self._beats_early):
            self._tasks.start_soon(self._beat)

    @override
    def unsent_bytes(self) -> int:
        transport = transport_of(self._raw_send)
        return 0 if transport is None else unsent_bytes(transport)

    async def _beat(self) -> None:
        if not self._started:
            await self._start(200, _STREAM_HEADERS)
        if not self._ended:
            await self._raw_send(_chunk(HEARTBEAT))

    async def _give(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        length = {"content-length": str(len(body))}
        await self._start(status, {**headers, **length})
        self._whole = True
        for at in range(0, len(body) or 1, PIECE_BYTES):
            last = at + PIECE_BYTES >= len(body)
            await self._raw_send(_chunk(body[at : at + PIECE_BYTES], last=last))
        self._ended = True

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._started = True
        pairs = {**self._headers, **headers}
        self._headers = {}
        await self._send({
            "type": "http.response.start",
            "status": status,
            "headers": [
                (name.encode("latin-1"), value.encode("latin-1"))
                for name, value in pairs.items()
            ],
        })


def _chunk(body: bytes, *, last: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": not last}
