"""Taking a provider's body: as events, whole, or as far as it has come."""

import json
from collections.abc import Mapping
from typing import override

import anyio
import pytest

from gateway.exchange.answer import (
    check_is_event_stream,
    read_answer,
    read_to_end,
    read_whole,
    take_arrived,
)
from gateway.providers.provider import Upstream
from streaming.dialects.chat import ChatDialect
from streaming.errors import (
    UpstreamFault,
    UpstreamInvalid,
    UpstreamReported,
    UpstreamTruncated,
)
from streaming.testing import ScriptedSource

pytestmark = pytest.mark.anyio

EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "Application/JSON"}
HTML = {"content-type": "text/html"}
ERROR = {"error": {"message": "bad", "code": 400}}
MOST = 1000


def upstream(
    *script: bytes | Exception, headers: Mapping[str, str] = JSON, hang: bool = False
) -> Upstream:
    return Upstream(200, headers, ScriptedSource(*script, hang=hang))


def answer(**members: object) -> bytes:
    choice = {"index": 0, "message": {"content": "a b"}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice | members]}).encode()


@pytest.mark.parametrize("headers", [EVENTS, {}])
async def test_events_are_taken_for_events(headers: Mapping[str, str]) -> None:
    await check_is_event_stream(upstream(headers=headers))


async def test_error_is_reported_when_it_comes_in_place_of_events() -> None:
    with pytest.raises(UpstreamReported) as raised:
        await check_is_event_stream(upstream(json.dumps(ERROR).encode()))
    assert (raised.value.status, raised.value.message) == (400, "bad")


@pytest.mark.parametrize(
    ("body", "headers"),
    [(b"<html>", HTML), (b"{}", JSON), (b"[1", JSON), (b"x" * 70_000, JSON)],
)
async def test_anything_else_in_place_of_events_is_invalid(
    body: bytes, headers: Mapping[str, str]
) -> None:
    with pytest.raises(UpstreamInvalid):
        await check_is_event_stream(upstream(body, headers=headers))


async def test_answer_is_read_whole_whatever_its_pieces() -> None:
    body = answer()
    pieces = [body[:1], body[1:7], body[7:]]
    got, reading = await read_answer(upstream(*pieces), ChatDialect(), MOST)
    assert got == body
    assert [text for _, text in reading.texts] == ["a b"]


@pytest.mark.parametrize(
    ("script", "headers", "fault"),
    [
        ([b'{"choices": ['], JSON, UpstreamInvalid),
        ([b""], JSON, UpstreamInvalid),
        ([b"[]"], JSON, UpstreamInvalid),
        ([answer()], EVENTS, UpstreamInvalid),
        ([b" " * (MOST + 1)], JSON, UpstreamInvalid),
        ([answer(finish_reason="abort")], JSON, UpstreamReported),
        ([json.dumps(ERROR).encode()], JSON, UpstreamReported),
        ([b"{", UpstreamTruncated()], JSON, UpstreamTruncated),
    ],
)
async def test_answer_that_is_none_is_a_fault(
    script: list[bytes | Exception],
    headers: Mapping[str, str],
    fault: type[UpstreamFault],
) -> None:
    with pytest.raises(fault):
        await read_answer(upstream(*script, headers=headers), ChatDialect(), MOST)


async def test_body_of_the_largest_size_is_read_and_one_more_byte_is_not() -> None:
    assert await read_whole(upstream(b"abc", b"d"), 4) == b"abcd"
    with pytest.raises(UpstreamInvalid):
        await read_whole(upstream(b"abc", b"de"), 4)


async def test_end_is_awaited_only_so_long() -> None:
    with anyio.fail_after(1):
        await read_to_end(upstream(b"a", hang=True), 0.01)
        await read_to_end(upstream(b"a", UpstreamTruncated()), 1)


class Buffered(ScriptedSource):
    """A body that waits only when there is nothing, as one of a real connection."""

    def __init__(self, arrived: bytes, *, ended: bool = False) -> None:
        super().__init__()
        self._arrived = arrived
        self._ended = ended

    @override
    async def receive(self, max_bytes: int = 65_536) -> bytes:
        if not self._arrived:
            if self._ended:
                raise anyio.EndOfStream
            await anyio.sleep_forever()
        taken, self._arrived = self._arrived[:max_bytes], self._arrived[max_bytes:]
        return taken


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 131_072, 200_000])
@pytest.mark.parametrize("ended", [True, False])
async def test_all_that_has_arrived_is_taken_without_waiting(
    size: int, ended: bool
) -> None:
    body = bytes(size)
    with anyio.fail_after(1), anyio.CancelScope() as scope:
        scope.cancel()  # as an exchange is whose client has left
        taken = await take_arrived(Upstream(200, {}, Buffered(body, ended=ended)))
        assert taken == body
