"""The pace of an answer while its reader is slow, on a transport of our own."""

import asyncio
from typing import override

import anyio
import pytest

from gateway.demo.connection import Connection, Reply
from gateway.demo.wire import Ending, Write

pytestmark = pytest.mark.anyio


class RecordingTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    @override
    def set_write_buffer_limits(
        self, high: int | None = None, low: int | None = None
    ) -> None:
        assert high == 0

    @override
    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    @override
    def abort(self) -> None: ...


async def test_lost_time_is_not_made_up_when_the_reader_comes_back() -> None:
    steps = [Write(0.01 * index, b"%d" % index) for index in range(50)]
    connection = Connection(
        lambda _: Reply(iter((*steps, Ending.KEEP_ALIVE))), 5.0, set()
    )
    transport = RecordingTransport()
    connection.connection_made(transport)
    connection.data_received(b"GET / HTTP/1.1\r\n\r\n")
    connection.pause_writing()
    assert transport.written == [b"0"]
    await anyio.sleep(0.1)
    assert transport.written == [b"0"]
    connection.resume_writing()
    assert transport.written in ([b"0"], [b"0", b"1"])
    connection.stop()
    await anyio.sleep(0.03)
    assert len(transport.written) <= 2
