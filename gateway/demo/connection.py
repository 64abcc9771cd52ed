"""One connection of the simulated provider: HTTP in, the steps of an answer out.

At any time a connection waits for exactly one thing: a request, the clock (one timer),
or the reader. The reader is waited for by a write buffer with no room: the transport
calls ``pause_writing`` as soon as the kernel does not take everything, and no step is
taken before ``resume_writing``. So at most one write is ever held here, and when an
answer ends, all of it has been given to the kernel.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, cast, override

from gateway.demo.attempts import Attempt, End
from gateway.demo.request_reader import BadRequest, Request, RequestReader
from gateway.demo.wire import Ending, Step, Write

# Other connections get their turn after so many writes of an unpaced one.
_WRITES_PER_TURN: Final = 8
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Reply:
    """The steps that answer a request, and their record if one is kept."""

    steps: Iterator[Step]
    attempt: Attempt | None = None


class Connection(asyncio.Protocol):
    """Answers one request after the other; a client must wait for its answer.

    Args:
        reply_to: Makes the answer to a whole request.
        keep_alive_seconds: An idle connection is closed after this long.
        connections: Where this connection is from its start to its end.
    """

    def __init__(
        self,
        reply_to: Callable[[Request], Reply],
        keep_alive_seconds: float,
        connections: set["Connection"],
    ) -> None:
        self._reply_to = reply_to
        self._keep_alive_seconds = keep_alive_seconds
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader()
        self._reply: Reply | None = None
        self._step: Step = Ending.HANG
        self._keep_alive = True
        self._origin = 0.0
        self._paused_at: float | None = None
        self._timer: asyncio.Handle | None = None

    @property
    def busy(self) -> bool:
        """Whether an answer is going on."""
        return self._reply is not None

    def stop(self) -> None:
        """End the connection at once, from this side."""
        self._over(End.STOPPED)
        self._transport.abort()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=0)
        self._connections.add(self)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._over(End.CLIENT_CLOSED)
        self._connections.discard(self)

    @override
    def eof_received(self) -> None:
        # A client that has closed its half has left. An idle connection is closed by
        # the transport; a busy one must not wait for its buffer to be read.
        if self.busy:
            self._over(End.CLIENT_CLOSED)
            self._transport.abort()

    @override
    def data_received(self, data: bytes) -> None:
        try:
            requests = self._reader.feed(data)
        except BadRequest:
            requests = []
            self._transport.abort()
        for request in requests:
            if self.busy:  # a second request before the first was answered
                self._transport.abort()
            else:
                self._begin(request)

    @override
    def pause_writing(self) -> None:
        self._paused_at = self._loop.time()

    @override
    def resume_writing(self) -> None:
        # The pace goes on from here: nothing was made while nobody read.
        if self._paused_at is not None:
            self._origin += self._loop.time() - self._paused_at
            self._paused_at = None
            self._advance()

    def _begin(self, request: Request) -> None:
        self._keep_alive = request.keep_alive
        self._origin = self._loop.time()
        self._reply = self._reply_to(request)
        self._step = next(self._reply.steps)
        self._advance()

    def _advance(self) -> None:
        """Do what is due, one turn's worth at most; then wait for clock or reader."""
        self._cancel_timer()
        for _ in range(_WRITES_PER_TURN):
            if self._reply is None or self._paused_at is not None:
                return
            if isinstance(self._step, Ending):
                self._end(self._step)
                return
            due = self._origin + self._step.due
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self._advance)
                return
            self._write(self._step, self._reply)
        self._timer = self._loop.call_soon(self._advance)

    def _write(self, step: Write, reply: Reply) -> None:
        if reply.attempt is not None:
            reply.attempt.count(step)
        self._step = next(reply.steps)
        self._transport.write(step.data)

    def _end(self, ending: Ending) -> None:
        if ending is Ending.HANG:
            return
        self._over(End.COMPLETED)
        if ending is Ending.RESET:
            self._reset()
        elif ending is Ending.CLOSE or not self._keep_alive:
            self._transport.close()
        else:
            self._timer = self._loop.call_later(
                self._keep_alive_seconds, self._transport.close
            )

    def _reset(self) -> None:
        """Close with RST instead of FIN."""
        sock: socket.socket = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    def _over(self, end: End) -> None:
        """No more of the answer, if one is going on."""
        self._cancel_timer()
        reply, self._reply = self._reply, None
        if reply is not None and reply.attempt is not None:
            reply.attempt.finish(end)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
