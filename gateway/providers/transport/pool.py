"""Idle keep-alive connections: last in, first out, each step O(1)."""

from typing import NamedTuple, Protocol


class Origin(NamedTuple):
    """Where connections may be exchanged for one another."""

    scheme: str
    host: str
    port: int


class Idle(Protocol):
    """What the pool knows of a connection."""

    @property
    def origin(self) -> Origin:
        """Where it leads."""
        ...

    idle_since: float

    def abort(self) -> None:
        """Close it at once; it may ``forget`` itself meanwhile."""
        ...


class Pool[C: Idle]:
    """Holds connections nobody uses; those in use are unknown to it.

    The last one put back is the first one taken: it is the least likely to have been
    closed by the server, and the others grow old enough to go. Times are in seconds of
    one clock that never goes back.

    Args:
        expiry: A connection idle for longer than this is closed.
        limit: Idle connections over all origins; one too many is closed.
    """

    def __init__(self, *, expiry: float, limit: int) -> None:
        self._expiry = expiry
        self._limit = limit
        self._size = 0
        # A dict as an ordered set: its end is the top of the stack, and a connection
        # that the server closed leaves the middle without a search.
        self._stacks: dict[Origin, dict[C, None]] = {}

    def __len__(self) -> int:
        return self._size

    def put(self, connection: C, now: float) -> None:
        """Take in a connection that is ready for another request."""
        if self._size >= self._limit:
            connection.abort()
            return
        connection.idle_since = now
        self._stacks.setdefault(connection.origin, {})[connection] = None
        self._size += 1

    def take(self, origin: Origin, now: float) -> C | None:
        """Hand out the connection used last; None when there is none young enough."""
        stack = self._stacks.get(origin)
        if not stack:
            return None
        connection, _ = stack.popitem()
        self._size -= 1
        if now - connection.idle_since <= self._expiry:
            return connection
        connection.abort()
        return None  # the others are older still: ``expire`` finds them

    def forget(self, connection: C) -> None:
        """Drop a connection that ended, if it is here."""
        stack = self._stacks.get(connection.origin, {})
        if connection in stack:
            del stack[connection]
            self._size -= 1

    def expire(self, now: float) -> None:
        """Close every connection that is idle for too long."""
        self._close_before(now - self._expiry)

    def close(self) -> None:
        """Close all, and each that comes back later."""
        self._limit = 0
        self._close_before(float("inf"))

    def _close_before(self, time: float) -> None:
        for stack in self._stacks.values():
            for connection in list(stack):
                if connection.idle_since >= time:
                    break
                self.forget(connection)
                connection.abort()
