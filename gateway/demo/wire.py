"""HTTP/1.1 bytes, and the steps in which an answer leaves.

An answer is an iterator of steps. Whoever drives it asks for the next step only when
the reader has taken the last one, so back-pressure needs no code of its own.
"""

from email.utils import formatdate
from enum import Enum, auto
from http import HTTPStatus
from typing import Final, NamedTuple

JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
LAST_CHUNK: Final = b"0\r\n\r\n"


class Write(NamedTuple):
    """Bytes for one write to the socket.

    Attributes:
        due: Seconds after the request; in the past means at once.
        data: The bytes, framed.
        tokens: How many tokens they hold, of all choices.
    """

    due: float
    data: bytes
    tokens: int = 0


class Ending(Enum):
    """What becomes of the connection after an answer's last write."""

    KEEP_ALIVE = auto()
    CLOSE = auto()
    RESET = auto()
    HANG = auto()


type Step = Write | Ending


def head(status: int, content_type: str, request_id: str, *fields: str) -> bytes:
    """Status line and header; ``fields`` are whole lines, the framing among them.

    A status that is in no standard has no phrase; an empty content type is none.
    """
    known = {one.value: one.phrase for one in HTTPStatus}
    lines = (
        f"HTTP/1.1 {int(status)} {known.get(status, '')}",
        f"date: {formatdate(usegmt=True)}",
        "server: sluice-simulator",
        *([f"content-type: {content_type}"] if content_type else ()),
        f"x-request-id: {request_id}",
        *fields,
        "\r\n",
    )
    return "\r\n".join(lines).encode("latin-1")


def chunked_head(content_type: str, request_id: str) -> bytes:
    """The head of a 200 whose body follows in chunks."""
    return head(HTTPStatus.OK, content_type, request_id, "transfer-encoding: chunked")


def chunk(payload: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def whole(
    status: int, content_type: str, request_id: str, body: bytes, *fields: str
) -> bytes:
    """A response with its body."""
    length = f"content-length: {len(body)}"
    return head(status, content_type, request_id, length, *fields) + body
