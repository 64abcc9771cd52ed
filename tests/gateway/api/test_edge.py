"""The outermost layer: request ids, header bounds, and what becomes of exceptions."""

import json
import re
from collections.abc import Sequence

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.edge import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    Edge,
    raw_send_of,
    request_id_of,
)

pytestmark = pytest.mark.anyio

type Headers = Sequence[tuple[bytes, bytes]]


async def greet(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the id it was given."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    body = request_id_of(scope).encode()
    await send({"type": "http.response.body", "body": body})


async def fail_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    message = "secret-host refused"
    raise RuntimeError(message)


async def fail_midway(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError


async def ask(app: ASGIApp, headers: Headers = (), kind: str = "http") -> list[Message]:
    """What a server would be sent."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": kind, "method": "GET", "path": "/", "headers": list(headers)}
    await Edge(app)(scope, receive, send)
    return sent


def id_in(answer: list[Message]) -> bytes:
    headers: dict[bytes, bytes] = dict(answer[0]["headers"])
    return headers[b"x-request-id"]


async def test_request_id_is_made_when_there_is_none() -> None:
    first, second = await ask(greet), await ask(greet)
    assert re.fullmatch(rb"[0-9a-f]{32}", id_in(first))
    assert id_in(first) != id_in(second)
    assert first[1]["body"] == id_in(first)


@pytest.mark.parametrize("given", [b"a", b"A.b_c-9", b"x" * 128])
async def test_request_id_is_kept_when_it_is_one(given: bytes) -> None:
    assert id_in(await ask(greet, [(b"x-request-id", given)])) == given


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"a b", b"a\nb", "ä".encode()])
async def test_request_id_is_replaced_when_it_is_none(given: bytes) -> None:
    made = id_in(await ask(greet, [(b"x-request-id", given)]))
    assert re.fullmatch(rb"[0-9a-f]{32}", made)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"a", b"")] * MAX_HEADERS, 200),
        ([(b"a", b"")] * (MAX_HEADERS + 1), 431),
        ([(b"a", b"x" * (MAX_HEADER_BYTES - 1))], 200),
        ([(b"a", b"x" * MAX_HEADER_BYTES)], 431),
    ],
)
async def test_headers_are_bounded(headers: Headers, status: int) -> None:
    answer = await ask(greet, headers)
    assert answer[0]["status"] == status
    assert b"x-request-id" in dict(answer[0]["headers"])


async def test_exception_is_an_error_like_all_when_nothing_was_sent() -> None:
    start, body = await ask(fail_at_once, [(b"x-request-id", b"kept")])
    assert start["status"] == 500
    assert id_in([start]) == b"kept"
    assert json.loads(body["body"])["error"]["code"] == "internal_error"
    assert b"secret-host" not in body["body"]


async def test_exception_reaches_the_server_when_the_answer_has_begun() -> None:
    with pytest.raises(RuntimeError):
        await ask(fail_midway)


async def test_application_may_send_past_the_edge() -> None:
    async def send_raw(scope: Scope, receive: Receive, send: Send) -> None:
        await raw_send_of(scope)({"type": "http.response.start", "headers": []})

    (start,) = await ask(send_raw)
    assert start["headers"] == []


async def test_lifespan_is_passed_on_as_it_is() -> None:
    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope.keys() == {"type", "method", "path", "headers"}
        await send({"type": "lifespan.startup.complete"})

    assert await ask(note, kind="lifespan") == [{"type": "lifespan.startup.complete"}]
