"""HTTP/1.1 requests out of bytes: sans-IO, by httptools."""

import secrets
from dataclasses import dataclass

import httptools


class BadRequest(Exception):
    """The bytes are not HTTP/1.1, or ask to leave it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One whole HTTP request.

    Attributes:
        method: In capitals.
        path: Without the query.
        body: Possibly empty.
        request_id: Its ``x-request-id``, or one made up.
        keep_alive: Whether the connection may live on after the answer.
        reused: Whether it is not the first of its connection.
    """

    method: str
    path: str
    body: bytes
    request_id: str
    keep_alive: bool
    reused: bool


class RequestReader:
    """The requests of one connection."""

    def __init__(self) -> None:
        self._draft = _Draft()
        self._parser = httptools.HttpRequestParser(self._draft)
        self._draft.parser = self._parser

    def feed(self, data: bytes) -> list[Request]:
        """The requests that are whole with these bytes, in order.

        Raises:
            BadRequest: Of HTTP/1.1 nothing more can be read here.
        """
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise BadRequest from error
        whole, self._draft.whole = self._draft.whole, []
        return whole


class _Draft:
    """What httptools tells while it parses. Nothing here may fail: it would hide it."""

    parser: httptools.HttpRequestParser

    def __init__(self) -> None:
        self.whole: list[Request] = []
        self._count = 0

    def on_message_begin(self) -> None:
        self._url = b""
        self._request_id = b""
        self._body = bytearray()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self._request_id = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        request = Request(
            method=self.parser.get_method().decode("latin-1"),
            path=self._url.partition(b"?")[0].decode("latin-1"),
            body=bytes(self._body),
            request_id=self._request_id.decode("latin-1") or secrets.token_hex(8),
            keep_alive=self.parser.should_keep_alive(),
            reused=self._count > 0,
        )
        self._count += 1
        self.whole.append(request)
