"""A proxy before a store that can lose replies, and whole connections."""

from types import TracebackType
from typing import Self

import anyio
from anyio.abc import ByteStream, Listener, SocketAttribute, SocketStream


class SeveredReplies:
    """Passes everything on, until it is told to lose the replies.

    Args:
        socket_path: Of the store.
    """

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._tasks = anyio.create_task_group()
        self.loses_replies = False
        self.connections: set[SocketStream] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self._port = listener.extra(SocketAttribute.local_port)
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._listen, listener)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(exc_type, exc, traceback)

    async def cut(self) -> None:
        """Close every connection, as an idle time-out does."""
        for connection in list(self.connections):
            await connection.aclose()

    async def _listen(self, listener: Listener[SocketStream]) -> None:
        async with listener:
            await listener.serve(self._serve)

    async def _serve(self, client: SocketStream) -> None:
        self.connections.add(client)
        try:
            async with (
                client,
                await anyio.connect_unix(self._socket_path) as store,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(self._pass_on, client, store)
                await self._reply(store, client)
                tasks.cancel_scope.cancel()
        finally:
            self.connections.discard(client)

    async def _pass_on(self, client: ByteStream, store: ByteStream) -> None:
        try:
            async for data in client:
                await store.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        await store.aclose()

    async def _reply(self, store: ByteStream, client: ByteStream) -> None:
        try:
            async for data in store:
                if self.loses_replies:
                    return
                await client.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
