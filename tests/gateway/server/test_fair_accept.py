import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Self, override

import anyio
import pytest

from gateway.server.fair_accept import SHORT_OF_FILES_SECONDS, Shares, accept_fairly
from tests.integration.fleet import eventually

pytestmark = pytest.mark.anyio

CLIENTS = 20


class Taker:
    """One who accepts, and tells how many connections it has."""

    def __init__(self, shares: Shares, number: int) -> None:
        self.connections: list[socket.socket] = []
        self.is_ahead = partial(shares.is_ahead, number)
        self.tell = partial(shares.tell, number)
        self.tell(0)

    async def take(self, connection: socket.socket) -> None:
        await anyio.lowlevel.checkpoint()
        self.connections.append(connection)
        self.tell(len(self.connections))


@asynccontextmanager
async def accepting(
    listener: socket.socket, *takers: Taker
) -> AsyncIterator[Callable[[], int]]:
    """While they accept; gives how many connections there are."""
    with ExitStack() as stack:
        async with anyio.create_task_group() as tasks:
            for one in takers:
                own = stack.enter_context(listener.dup())  # as each process has
                tasks.start_soon(accept_fairly, own, one.take, one.is_ahead)
            yield lambda: sum(len(one.connections) for one in takers)
            tasks.cancel_scope.cancel()
    for one in takers:
        for connection in one.connections:
            assert connection.getblocking() is False
            connection.close()


@contextmanager
def connected(listener: socket.socket) -> Iterator[None]:
    """While there are that many clients."""
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            client = socket.create_connection(listener.getsockname())
            stack.enter_context(client)
        yield


async def accepted(amount: Callable[[], int]) -> int:
    async def read() -> int:
        await anyio.lowlevel.checkpoint()
        return amount()

    return await eventually(read, lambda found: found == CLIENTS)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def listener() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


async def test_burst_is_shared_by_those_who_accept(listener: socket.socket) -> None:
    shares = Shares(2)
    takers = [Taker(shares, number) for number in range(2)]
    with listener, connected(listener):
        async with accepting(listener, *takers) as amount:
            assert await accepted(amount) == CLIENTS
            one, other = (len(one.connections) for one in takers)
            assert abs(one - other) <= 2


@pytest.mark.parametrize("other", ["stuck", "dead"])
async def test_all_is_accepted_while_another_does_not(
    listener: socket.socket, other: str
) -> None:
    shares = Shares(2)
    alone, _ = Taker(shares, 0), Taker(shares, 1)
    if other == "dead":
        shares.leave(1)
    with listener, connected(listener):
        async with accepting(listener, alone) as amount:
            assert await accepted(amount) == CLIENTS
            assert alone.is_ahead() is (other == "stuck")


class ShortListener(socket.socket):
    """Has no file descriptor left, the first times."""

    failures = 2

    @override
    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return super().accept()

    @override
    def dup(self) -> Self:
        other = type(self)(fileno=os.dup(self.fileno()))
        other.setblocking(False)
        return other


async def test_connection_waits_while_there_is_no_file_descriptor_for_it(
    listener: socket.socket,
) -> None:
    taker = Taker(Shares(1), 0)
    with ShortListener(fileno=listener.detach()) as short, connected(short):
        begun_at = anyio.current_time()
        async with accepting(short, taker) as amount:
            assert await accepted(amount) == CLIENTS
        waited = anyio.current_time() - begun_at
    assert waited >= ShortListener.failures * SHORT_OF_FILES_SECONDS
