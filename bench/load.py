"""A raw HTTP client that counts chunks and checks that none is missing."""

import asyncio
from dataclasses import dataclass

import anyio


@dataclass(frozen=True)
class Load:
    """What is asked of a target.

    Attributes:
        model: Names the simulated provider's pace and length.
        stream: Whether events are asked for.
        concurrency: Requests at a time, each on a kept-alive connection of its own.
        requests: Per connection.
        chunks: Events with text that each answer must have; 0: not a stream.
    """

    model: str
    stream: bool
    concurrency: int
    requests: int
    chunks: int

    @property
    def answers(self) -> int:
        return self.concurrency * self.requests


@dataclass
class Seen:
    """What came back."""

    answers: int = 0
    chunks: int = 0


async def drive(host: str, port: int, key: str, load: Load) -> Seen:
    """Put the load on; raises where an answer is not whole."""
    seen = Seen()
    async with anyio.create_task_group() as tasks:
        for _ in range(load.concurrency):
            tasks.start_soon(_converse, host, port, key, load, seen)
    return seen


async def _converse(host: str, port: int, key: str, load: Load, seen: Seen) -> None:
    request = _request(host, key, load)
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    try:
        for _ in range(load.requests):
            writer.write(request)
            body = await _read_answer(reader)
            seen.answers += 1
            seen.chunks += _check(body, load)
    finally:
        writer.close()


def _request(host: str, key: str, load: Load) -> bytes:
    stream = "true" if load.stream else "false"
    body = (
        f'{{"model":"{load.model}","stream":{stream},"max_tokens":100000,'
        f'"messages":[{{"role":"user","content":"Tell me about rivers."}}]}}'
    )
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        message = f"not a success: {head!r}"
        raise RuntimeError(message)
    lower = head.lower()
    if b"content-length: " in lower:
        size = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return await reader.readexactly(size)
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(parts)


def _check(body: bytes, load: Load) -> int:
    if not load.stream:
        return 0
    chunks = body.count(b'"delta":{"content":"')
    if not body.endswith(b"data: [DONE]\n\n") or (load.chunks and chunks < load.chunks):
        message = f"an answer of {chunks} chunks is not whole: {body[-200:]!r}"
        raise RuntimeError(message)
    return body.count(b"data: ")
