"""A connection whose client does not read the end of its answer."""

import asyncio
import socket
from collections.abc import AsyncIterator

import anyio
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from gateway.server.protocol import Connection

pytestmark = pytest.mark.anyio

ANSWER = b"a" * 5_000_000
KEEP_ALIVE_SECONDS = 1
REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: %b\r\n\r\n"
SLOW_SECONDS = 2.5 * KEEP_ALIVE_SECONDS


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    length = (b"content-length", b"%d" % len(ANSWER))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": ANSWER})


@pytest.fixture
async def state() -> AsyncIterator[tuple[ServerState, int]]:
    """Its connections, and the port."""
    config = uvicorn.Config(
        answer,
        http=Connection,
        lifespan="off",
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(100, config=config, server_state=state, app_state={}),
        "127.0.0.1",
        0,
    )
    async with server:
        yield state, server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("connection", [b"keep-alive", b"close"])
async def test_connection_ends_when_its_client_does_not_read(
    state: tuple[ServerState, int], connection: bytes
) -> None:
    server, port = state
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(REQUEST % connection)
        await anyio.sleep(0.2)
        assert len(server.connections) == 1
        await anyio.sleep(SLOW_SECONDS)
        assert not server.connections


@pytest.mark.parametrize("connection", [b"keep-alive", b"close"])
async def test_connection_lives_when_its_client_reads_slowly(
    state: tuple[ServerState, int], connection: bytes
) -> None:
    _, port = state
    received = 0
    async with await anyio.connect_tcp("127.0.0.1", port) as client:
        await client.send(REQUEST % connection)
        while received < len(ANSWER):
            part = await client.receive()
            received += len(part)
            await anyio.sleep(SLOW_SECONDS * len(part) / len(ANSWER))
    assert received > len(ANSWER)
