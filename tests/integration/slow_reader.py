"""A client that reads its connection by the byte, through the smallest of windows."""

import socket
from types import TracebackType
from typing import Self, override

import anyio

from tests.integration.raw_client import RawClient

WINDOW_STEP_BYTES = 576
"""Linux acknowledges to a reader with the smallest buffer after so many bytes, and not
before: of slower progress its peer can know nothing."""


class SlowReader(RawClient):
    """A client in whose kernel next to nothing is kept (2304 bytes on Linux)."""

    _socket: socket.socket

    @override
    async def __aenter__(self) -> Self:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        self._socket.connect(self._address)
        self._socket.setblocking(False)
        return self

    @override
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    @override
    async def send(self, data: bytes) -> None:
        self._socket.setblocking(True)
        self._socket.sendall(data)
        self._socket.setblocking(False)

    async def sip(self, amount: int) -> int:
        """Read so many bytes at most; how many there were, -1 at the end of all."""
        try:
            data = self._socket.recv(amount)
        except BlockingIOError:
            return 0
        except ConnectionResetError:
            return -1
        self._parser.feed_data(data)
        return len(data) or -1

    async def read_slowly(self, bytes_per_second: float, seconds: float) -> bool:
        """Read at that pace for so long; whether the connection is still there."""
        began_at, taken = anyio.current_time(), 0
        while (past := anyio.current_time() - began_at) < seconds:
            due = int(past * bytes_per_second) - taken
            if due > 0:
                taken += (got := await self.sip(due))
                if got < 0:
                    return False
            await anyio.sleep(0.01)
        return True
