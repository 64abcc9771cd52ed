"""The client's side of a test: ask over a transport, read by pulling."""

import anyio
import httpx

from gateway.providers.transport import PooledTransport, ResponseBody
from gateway.providers.transport.connection import Connection


async def ask(
    transport: PooledTransport,
    url: str,
    *,
    method: str = "POST",
    content: bytes = b"{}",
    connect: float | None = 2.0,
    read: float | None = None,
) -> httpx.Response:
    timeout = {"connect": connect, "read": read}
    request = httpx.Request(
        method, url, content=content, extensions={"timeout": timeout}
    )
    response = await transport.handle_async_request(request)
    response.request = request
    return response


def body_of(response: httpx.Response) -> ResponseBody:
    body = response.extensions["body"]
    assert isinstance(body, ResponseBody)
    return body


def connection_of(body: ResponseBody) -> Connection:
    connection = body._connection
    assert connection is not None
    return connection


def attempts_of(response: httpx.Response) -> int:
    attempts = response.request.extensions["attempts"]
    assert isinstance(attempts, int)
    return attempts


async def read_on(body: ResponseBody, into: bytearray) -> None:
    """Read to the proper end, keeping what came if there is none."""
    try:
        while True:
            into += await body.receive()
    except anyio.EndOfStream:
        return


async def read(response: httpx.Response) -> bytes:
    content = bytearray()
    await read_on(body_of(response), content)
    return bytes(content)


async def fetch(transport: PooledTransport, url: str) -> bytes:
    return await read(await ask(transport, url))
