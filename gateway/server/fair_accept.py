"""Processes that accept from one listening socket, and leave one another a fair share.

Who wakes first would take all that waits: the others may need a millisecond to wake.
So a process with more connections than another one gives that one a moment.
"""

import errno
import mmap
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

MOMENT_SECONDS: Final = 0.001
SHORT_OF_FILES_SECONDS: Final = 0.1
"""Until the next try; the connection waits, or another process takes it."""
_ABSENT: Final = 0xFFFFFFFF
_COUNT_BYTES: Final = 4
_SHORT: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Shares:
    """How many connections each process has; made before they fork."""

    def __init__(self, processes: int) -> None:
        self._memory = mmap.mmap(-1, processes * _COUNT_BYTES)
        self._counts = memoryview(self._memory).cast("I")
        for number in range(processes):
            self.leave(number)

    def tell(self, number: int, connections: int) -> None:
        """This process has so many by now."""
        self._counts[number] = connections

    def leave(self, number: int) -> None:
        """This process has ended."""
        self._counts[number] = _ABSENT

    def is_ahead(self, number: int) -> bool:
        """Whether this process has more than another one."""
        return self._counts[number] > min(self._counts)


async def accept_fairly(
    listener: socket.socket,
    take: Callable[[socket.socket], Awaitable[object]],
    is_ahead: Callable[[], bool],
) -> None:
    """Accept until cancelled.

    Args:
        listener: Is not blocking, and is not closed here.
        take: Gets each connection, and closes it.
        is_ahead: Whether others should have it.
    """
    while True:
        await anyio.wait_readable(listener)
        if is_ahead():
            await anyio.sleep(MOMENT_SECONDS)
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            continue  # another process has it, or its client has left
        except OSError as error:
            if error.errno not in _SHORT:
                raise
            await anyio.sleep(SHORT_OF_FILES_SECONDS)
            continue
        connection.setblocking(False)  # noqa: FBT003 - the standard library's signature
        await take(connection)
