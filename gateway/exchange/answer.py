"""Taking a provider's body: as an event stream, or whole and bounded."""

import json
from contextlib import suppress

import anyio
from anyio import to_thread

from gateway.providers.provider import Upstream
from gateway.routing.refusal import ERROR_BODY_BYTES
from streaming.dialects.reading import Dialect, Reading, read_error
from streaming.errors import UpstreamFault, UpstreamInvalid
from streaming.stages.verdict import Verdict, reported

_EVENT_STREAM = "text/event-stream"
_PART_BYTES = 65_536
_INLINE_BYTES = 262_144
"""Read on the event loop: some 15 ms at worst."""


async def check_is_event_stream(upstream: Upstream) -> None:
    """Return if the body may be read as events.

    A missing content type is tolerated: the events will tell.

    Raises:
        UpstreamReported: It is JSON, and an error.
        UpstreamInvalid: It is anything else.
    """
    content_type = _content_type(upstream)
    if content_type in {"", _EVENT_STREAM}:
        return
    if content_type == "application/json":
        body = await read_whole(upstream, ERROR_BODY_BYTES)
        with suppress(ValueError, RecursionError):
            document = json.loads(body)
            if isinstance(document, dict) and document.get("error") is not None:
                raise reported(read_error(document["error"]))
    message = "The provider did not answer with an event stream."
    raise UpstreamInvalid(message)


async def read_answer(
    upstream: Upstream, dialect: Dialect, most: int
) -> tuple[bytes, Reading]:
    """A whole non-stream answer of at most ``most`` bytes.

    Raises:
        UpstreamInvalid: It is no JSON object, an event stream, or too large.
        UpstreamReported: It says that the provider failed.
        UpstreamTruncated: It ended early.
    """
    if _content_type(upstream) == _EVENT_STREAM:
        raise UpstreamInvalid
    body = await read_whole(upstream, most)
    if len(body) <= _INLINE_BYTES:
        reading = dialect.read_answer(body)
    else:
        reading = await to_thread.run_sync(dialect.read_answer, body)
    if reading is None:
        raise UpstreamInvalid
    verdict = Verdict()
    verdict.judge(reading)
    if verdict.fault is not None:
        raise verdict.fault
    return body, reading


async def read_whole(upstream: Upstream, most: int) -> bytes:
    """The body to its end.

    Raises:
        UpstreamInvalid: It is larger than ``most`` bytes.
        UpstreamTruncated: It ended early.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            part = await upstream.body.receive()
        except anyio.EndOfStream:
            return b"".join(parts)
        size += len(part)
        if size > most:
            message = "The provider's answer is too large."
            raise UpstreamInvalid(message)
        parts.append(part)


async def take_arrived(upstream: Upstream) -> bytes:
    """What of the body is in this process already; the network is not waited for."""
    arrived = b""
    # Cancelled from its start: a receive that has to wait ends it.
    with (
        anyio.CancelScope(shield=True) as scope,
        suppress(anyio.EndOfStream, UpstreamFault),
    ):
        scope.cancel()
        while len(part := await upstream.body.receive(_PART_BYTES)) == _PART_BYTES:
            arrived += part  # and there may be more; less than a part is the last
        arrived += part
    return arrived


async def read_to_end(upstream: Upstream, seconds: float) -> None:
    """Let the body come to its end, so that its connection can be used again."""
    if upstream.is_whole():
        return
    with anyio.move_on_after(seconds), suppress(anyio.EndOfStream, UpstreamFault):
        while True:
            await upstream.body.receive()


def _content_type(upstream: Upstream) -> str:
    value = upstream.headers.get("content-type", "")
    return value.partition(";")[0].strip().lower()
