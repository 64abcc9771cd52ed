"""A network that fails as a test says: between a gateway and its provider or store.

::

    gateway ──► FaultProxy ──► whatever it stands before
                BlackHole      nobody: it neither accepts nor refuses
"""

import socket
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import ByteStream, Listener, SocketAttribute, SocketStream

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class FaultProxy:
    """Passes TCP on, both ways, in an event loop; what it spoils are the replies.

    Args:
        target: Host and port of what it stands before.

    Attributes:
        delay_seconds: Each piece of a reply waits for so long.
        cut_after_bytes: After so many more bytes of replies a connection ends, one and
            no other; None: none does.
        resets: It ends with RST instead of FIN.
        drops_replies: What the target answers is lost, and the connection with it.
        accepted: Connections so far.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._tasks = anyio.create_task_group()
        self._connections: set[SocketStream] = set()
        self._open = anyio.Event()
        self._open.set()
        self.delay_seconds = 0.0
        self.cut_after_bytes: int | None = None
        self.resets = False
        self.drops_replies = False
        self.accepted = 0
        self.port = 0

    @property
    def url(self) -> str:
        """Of a provider behind it."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        await self.accept()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(exc_type, exc, traceback)

    async def accept(self) -> None:
        """Listen, or listen again."""
        listener = await anyio.create_tcp_listener(
            local_host="127.0.0.1", local_port=self.port
        )
        self.port = listener.extra(SocketAttribute.local_port)
        self._listening = anyio.CancelScope()
        self._tasks.start_soon(self._listen, listener, self._listening)

    async def refuse(self) -> None:
        """Refuse connections from now on, and cut those there are."""
        self._listening.cancel()
        await self.cut()

    async def cut(self) -> None:
        """End every connection, by a reset if that is set."""
        for connection in list(self._connections):
            await self._end(connection)

    def hold(self) -> None:
        """Replies wait from now on: both ways the connection is there, and silent."""
        self._open = anyio.Event()

    def release(self) -> None:
        """Replies flow again, those that waited first."""
        self._open.set()

    async def _listen(
        self, listener: Listener[SocketStream], scope: anyio.CancelScope
    ) -> None:
        async with listener:
            with scope:
                await listener.serve(self._serve, self._tasks)

    async def _serve(self, client: SocketStream) -> None:
        self.accepted += 1
        self._connections.add(client)
        try:
            async with (
                client,
                await anyio.connect_tcp(*self._target) as target,
                anyio.create_task_group() as tasks,
            ):
                over = tasks.cancel_scope  # for both when one side has ended
                tasks.start_soon(_pass_on, client, target.send, over)
                await _pass_on(target, lambda data: self._reply(data, client), over)
        except OSError:
            pass  # nobody is there: its connection ends
        finally:
            self._connections.discard(client)

    async def _reply(self, data: bytes, client: SocketStream) -> None:
        if self.delay_seconds:
            await anyio.sleep(self.delay_seconds)
        await self._open.wait()
        if self.drops_replies:
            data = b""
        most = self.cut_after_bytes
        if most is not None:
            data, self.cut_after_bytes = data[:most], max(0, most - len(data))
        if data:
            await client.send(data)
        if self.drops_replies or self.cut_after_bytes == 0:
            self.cut_after_bytes = None
            await self._end(client)
            raise anyio.EndOfStream

    async def _end(self, connection: SocketStream) -> None:
        if self.resets:
            raw: socket.socket = connection.extra(SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        await anyio.aclose_forcefully(connection)


async def _pass_on(
    source: ByteStream,
    send: Callable[[bytes], Awaitable[None]],
    over: anyio.CancelScope,
) -> None:
    try:
        while True:
            await send(await source.receive())
    except _GONE:
        await anyio.aclose_forcefully(source)
        over.cancel()


class BlackHole:
    """An address that neither accepts nor refuses: its queue of connections is full."""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        address = self._listener.getsockname()
        self.url = "http://{}:{}/v1".format(*address)
        self._queue = [socket.socket() for _ in range(4)]
        for one in self._queue:
            one.setblocking(False)
            one.connect_ex(address)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for one in (*self._queue, self._listener):
            one.close()
