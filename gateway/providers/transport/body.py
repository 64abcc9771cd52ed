"""The readers of an answer: one pulls, one is for those who iterate with httpx."""

from collections.abc import AsyncIterator
from typing import override

import anyio
import httpx
from anyio.abc import ByteReceiveStream

from gateway.providers.transport.connection import Connection, State
from streaming.errors import UpstreamTruncated


class ResponseBody(ByteReceiveStream):
    """The body of one answer; not reading it is back-pressure.

    It closes the connection, or gives it back for another request when the answer was
    whole. Without ``aclose``, ``abort`` or a read to the end the connection stays open.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection
        self._at_end = False

    @override
    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return what has arrived, at least a byte; wait if that is nothing.

        A cancelled call loses nothing. No checkpoint is needed for fairness: what is
        buffered is bounded, and only the event loop brings more.

        Raises:
            anyio.EndOfStream: The body came to its proper end.
            UpstreamTruncated: It ended in any other way.
            anyio.ClosedResourceError: It was closed on this side.
            anyio.BusyResourceError: Another task is in ``receive``.
        """
        while (connection := self._connection) is not None:
            if connection.buffer:
                return connection.take(max_bytes)
            if connection.state is State.COMPLETE:
                self._at_end = True
                await self.aclose()
            elif connection.state is State.CLOSED:
                raise UpstreamTruncated from connection.error
            else:
                await connection.changed()
        raise anyio.EndOfStream if self._at_end else anyio.ClosedResourceError

    @override
    async def aclose(self) -> None:
        """Close the connection at once, unless the answer is whole and it may live."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.finish()

    def is_whole(self) -> bool:
        """Whether all of it has arrived, be it read or not."""
        connection = self._connection
        return connection is None or connection.state is State.COMPLETE

    def abort(self) -> None:
        """Close the connection at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()


class ResponseStream(httpx.AsyncByteStream):
    """The same body for httpx's own readers, with httpx's own errors."""

    def __init__(self, body: ResponseBody) -> None:
        self._body = body

    @override
    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Return what has arrived.

        Raises:
            httpx.RemoteProtocolError: The body was cut short.
        """
        try:
            return await self._body.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None
        except UpstreamTruncated as error:
            message = "the body ended before it was complete"
            raise httpx.RemoteProtocolError(message) from error

    @override
    async def aclose(self) -> None:
        await self._body.aclose()
