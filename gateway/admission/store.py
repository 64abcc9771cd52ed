"""The way to Redis: one connection for all exchanges of the process, and a breaker.

Calls go out together, one write per loop turn, and their replies come back in order, so
that concurrent calls share the cost of a write and a read. Only the tasks in here touch
the socket: a caller that is cancelled leaves nothing behind but a reply nobody reads.

A call fails with ``StoreUnavailable`` when it has waited ``timeout_seconds`` for a
connection, or for its reply since it was written; it may have run all the same. As long
as others are answered in time it fails alone; when none is, the connection is given up.
Nothing is ever sent twice by itself.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Any, Self

import anyio
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from gateway.admission.books import PREFIX
from gateway.admission.scripts import Part, command
from gateway.errors import StoreUnavailable

FAILURES = 2
"""In a row: they open the breaker."""

PROBE_SECONDS = 1.0
"""Between two attempts to connect while the breaker is open."""

WAITING_CALLS = 4096
"""About as many as Redis answers within the timeout; one more is refused at once."""

STALL_SECONDS = 0.02
"""A timer that fires later than this was held up by our own event loop."""

SECOND_LOOK_SECONDS = 0.05
"""How long a reply may still come after that."""

type Reply = Any
"""Bytes, an int, None, or a list of these: as redis-py reads RESP2."""

_WRITABLE = f"{PREFIX}writable"
_WRITABLE_MS = 10_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Breaker:
    """Whether calls are worth sending. A value: each event makes the next one.

    =========== ================== ============================================
    state       event              next
    =========== ================== ============================================
    closed      failed             closed; at the second failure in a row: open
    closed      answered           closed, no failure counted
    open        connected (probe)  on trial: closed, one failure short of open
    open        failed (probe)     open
    =========== ================== ============================================

    Attributes:
        failures: In a row: connections lost or not made.
        probe_at: When the next attempt is due; None while closed.
    """

    failures: int = 0
    probe_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls are refused."""
        return self.probe_at is not None

    def failed(self, now: float) -> "Breaker":
        """A connection was lost, or could not be made."""
        failures = self.failures + 1
        return Breaker(failures, now + PROBE_SECONDS if failures >= FAILURES else None)

    def connected(self) -> "Breaker":
        """The store has answered a ping on a new connection."""
        return Breaker(FAILURES - 1) if self.is_open else self

    def answered(self) -> "Breaker":
        """The store has answered a call."""
        return Breaker() if self.failures else self


@dataclass(slots=True)
class _Call:
    command: bytes
    deadline: float
    reply: asyncio.Future[Reply | Exception]


class Store:
    """Redis at a URL, from entering the block to leaving it.

    It may be down at any time, also when the block is entered: it is looked for once a
    second, and calls fail until it is back.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads them.
        timeout_seconds: Longest wait for a reply, connecting included.
        on_change: Told whether the store can be used, each time that changes.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 0.2,
        on_change: Callable[[bool], None] = lambda _: None,
    ) -> None:
        # RESP2 needs no handshake. Timeouts and retries are ours: redis-py's defaults
        # replay a script whose reply was lost, and time each read on its own.
        self._pool = ConnectionPool.from_url(
            url,
            protocol=2,
            driver_info=None,
            socket_timeout=None,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
        )
        self._timeout_seconds = timeout_seconds
        self._on_change = on_change
        self._breaker = Breaker()
        self._is_running = False
        self._is_up = False
        self._unsent: deque[_Call] = deque()
        self._sent: deque[_Call] = deque()
        self._has_unsent = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = 0.0  # of the loop's time

    async def __aenter__(self) -> Self:
        # Not made before there is a loop: the store itself is made without one.
        self._attempt = anyio.CancelScope()
        self._tasks = await anyio.create_task_group().__aenter__()
        self._is_running = True
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._is_running = False
        self._tasks.cancel_scope.cancel()
        try:
            return await self._tasks.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102 - its tasks end when cancelled
        finally:
            closed = ConnectionAbortedError("the store was closed")
            self._fail(self._sent, closed)
            self._fail(self._unsent, closed)
            if self._timer is not None:
                self._timer.cancel()

    @property
    def is_up(self) -> bool:
        """Whether the store was there when last seen."""
        return self._is_up

    @property
    def is_lost(self) -> bool:
        """Whether calls are refused at once."""
        return self._breaker.is_open

    @property
    def masters(self) -> "tuple[Store, ...]":
        """The stores that share the keys: a single one has them all."""
        return (self,)

    async def ping(self) -> None:
        """Write something small: a store that only answers can hold no tokens.

        Raises:
            StoreUnavailable: There is no answer, no memory, or nothing may be written.
        """
        await self.call("SET", _WRITABLE, 1, "PX", _WRITABLE_MS)

    def send(
        self, encoded: bytes, _principal: str = ""
    ) -> asyncio.Future[Reply | Exception]:
        """Queue a command; it leaves with the others of this loop turn.

        Whose keys it is about decides nothing here (``ClusterStore``).

        Returns:
            A future that never raises; ``reply_of`` awaits it.

        Raises:
            StoreUnavailable: The breaker is open, or too many calls are waiting.
        """
        waiting = len(self._sent) + len(self._unsent)
        if self._breaker.is_open or not self._is_running or waiting >= WAITING_CALLS:
            raise StoreUnavailable(retry_after_seconds=PROBE_SECONDS)
        loop = asyncio.get_running_loop()
        call = _Call(encoded, loop.time() + self._timeout_seconds, loop.create_future())
        self._unsent.append(call)
        self._has_unsent.set()
        self._arm()
        return call.reply

    async def call(self, *parts: Part) -> Reply:
        """Send one command and wait for its reply.

        Raises:
            StoreUnavailable: No reply in time, no connection, or an error reply.
        """
        return reply_of(await self.send(command(*parts)))

    def _arm(self) -> None:
        due = self._due()
        if self._timer is None and due is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(due, self._watch, due)

    def _due(self) -> float | None:
        """When a call has waited for long enough, or the connection been silent."""
        if not self._sent:
            return self._unsent[0].deadline if self._unsent else None
        waiting = (call.deadline for call in self._sent if not call.reply.done())
        return next(waiting, self._silent_since() + self._timeout_seconds)

    def _silent_since(self) -> float:
        """When a call was last answered, or the oldest one without reply written."""
        return max(self._heard_at, self._sent[0].deadline - self._timeout_seconds)

    def _watch(self, planned: float) -> None:
        # One timer for all calls: it looks whether the oldest is overdue.
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - planned > STALL_SECONDS:
            # The loop was late itself: the reply may be in the socket, unread.
            again = now + SECOND_LOOK_SECONDS
            self._timer = loop.call_at(again, self._watch, again)
        elif self._sent and self._silent_since() + self._timeout_seconds <= planned:
            self._attempt.cancel()
        else:  # an attempt to connect has a time-out of its own
            while self._unsent and self._unsent[0].deadline <= planned:
                self._answer(self._unsent.popleft(), TimeoutError("no connection"))
            for call in takewhile(lambda one: one.deadline <= planned, self._sent):
                self._answer(call, TimeoutError("no reply in time"))
            self._arm()

    async def _run(self) -> None:
        while True:
            if self._breaker.probe_at is not None:
                await anyio.sleep(self._breaker.probe_at - anyio.current_time())
            cause: Exception = TimeoutError("no reply in time")
            with anyio.CancelScope() as self._attempt:
                cause = await self._converse()
            self._end_attempt(cause)

    async def _converse(self) -> Exception:
        # Connects and serves; returns why that ended.
        # redis-py leaves some of its methods without types
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        cause: Exception = ConnectionError("the store closed the connection")
        try:
            await self._connect(connection)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, connection)
                tasks.start_soon(self._read, connection)
        except* (RedisError, OSError, ValueError) as errors:  # ValueError: not RESP
            cause = errors.exceptions[0]
        finally:
            with anyio.move_on_after(self._timeout_seconds, shield=True):
                await connection.disconnect(nowait=True)
        return cause

    async def _connect(self, connection: AbstractConnection) -> None:
        with anyio.fail_after(self._timeout_seconds):
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("PING")
            await connection.read_response()
        self._breaker = self._breaker.connected()
        self._say(is_up=True)

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            await self._has_unsent.wait()
            self._has_unsent.clear()
            calls = list(self._unsent)
            self._unsent.clear()
            self._sent.extend(calls)
            deadline = asyncio.get_running_loop().time() + self._timeout_seconds
            for call in calls:
                call.deadline = deadline
            await connection.send_packed_command(b"".join(c.command for c in calls))

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            reply: Reply | Exception
            try:
                reply = await connection.read_response(disable_decoding=True)
            except ResponseError as error:
                reply = error
            if not self._sent:
                message = "a reply to no call"
                raise InvalidResponse(message)
            self._breaker = self._breaker.answered()
            if self._answer(self._sent.popleft(), reply):
                self._heard_at = asyncio.get_running_loop().time()

    def _end_attempt(self, cause: Exception) -> None:
        self._fail(self._sent, cause)
        was_open = self._breaker.is_open
        self._breaker = self._breaker.failed(anyio.current_time())
        if self._breaker.is_open:
            self._fail(self._unsent, cause)
            self._say(is_up=False)
            if not was_open:
                logger.warning("the quota store is lost: %s", cause)
        self._arm()

    @staticmethod
    def _answer(call: _Call, reply: Reply | Exception) -> bool:
        if call.reply.done():  # its time is over, or its caller was cancelled
            return False
        call.reply.set_result(reply)
        return True

    def _fail(self, calls: deque[_Call], cause: Exception) -> None:
        while calls:
            self._answer(calls.popleft(), cause)

    def _say(self, *, is_up: bool) -> None:
        if is_up is not self._is_up:
            self._is_up = is_up
            self._on_change(is_up)


def reply_of(reply: Reply | Exception) -> Reply:
    """The reply, if it is one.

    Raises:
        StoreUnavailable: It is an error.
    """
    if isinstance(reply, Exception):
        raise StoreUnavailable(retry_after_seconds=PROBE_SECONDS) from reply
    return reply
