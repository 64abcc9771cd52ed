"""What a client may send: everything two parsers could read differently is refused."""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.integration.fleet import Fleet, Plan, running

GET = b"GET /healthz HTTP/1.1\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running(Plan(models={"m": "sim-r0-t3-f0"})) as fleet:
        yield fleet


def address(fleet: Fleet) -> tuple[str, int]:
    url = httpx.URL(fleet.base_url)
    assert url.port is not None
    return url.host, url.port


def answers(fleet: Fleet, *pieces: bytes) -> tuple[int, dict[str, str]]:
    """Status and error of what comes back before the gateway closes."""
    with socket.create_connection(address(fleet), timeout=5) as client:
        for piece in pieces:
            client.sendall(piece)
        received = b""
        while part := client.recv(65_536):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"x-request-id: " in head
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"GET /healthz HTTP/1.1\nhost: a\n\n", id="bare LF"),
        pytest.param(POST + b"content-length: 3\r\n" + CHUNKED + b"\r\n", id="CL, TE"),
        pytest.param(POST + CHUNKED + b"content-length: 3\r\n\r\n", id="TE, CL"),
        pytest.param(POST + b"content-length: 3\r\n" * 2 + b"\r\nabc", id="two CL"),
        pytest.param(POST + b"transfer-encoding: gzip\r\n\r\n", id="odd TE"),
        pytest.param(POST + b"content-length: -1\r\n\r\n", id="negative CL"),
        pytest.param(GET + b"host: a\r\nhost: b\r\n\r\n", id="two hosts"),
        pytest.param(GET + b"\r\n", id="no host"),
        pytest.param(GET + b"host: a\r\nx: a\r\n b\r\n\r\n", id="folded line"),
        pytest.param(b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", id="TLS"),
    ],
)
def test_request_is_refused_when_its_framing_is_not_clear(
    fleet: Fleet, request_bytes: bytes
) -> None:
    status, error = answers(fleet, request_bytes)
    assert (status, error["code"]) == (400, "invalid_request")


def test_head_is_refused_before_it_is_whole_when_it_is_too_large(fleet: Fleet) -> None:
    lines = (b"x-%d: %b\r\n" % (number, b"a" * 1000) for number in range(300))
    status, error = answers(fleet, GET + b"host: a\r\n", *lines)
    assert (status, error["code"]) == (431, "headers_too_large")


def test_head_is_refused_when_it_has_too_many_fields(fleet: Fleet) -> None:
    fields = b"".join(b"x-%d: 1\r\n" % number for number in range(100))
    request = GET + b"host: a\r\nconnection: close\r\n" + fields + b"\r\n"
    status, error = answers(fleet, request)
    assert (status, error["code"]) == (431, "headers_too_large")


def test_upgrade_is_answered_as_if_it_had_not_been_asked_for(fleet: Fleet) -> None:
    with socket.create_connection(address(fleet), timeout=5) as client:
        client.sendall(GET + b"host: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_request_that_comes_too_early_is_not_served_and_the_connection_closes(
    fleet: Fleet,
) -> None:
    with socket.create_connection(address(fleet), timeout=5) as client:
        client.sendall((GET + b"host: a\r\n\r\n") * 2)
        received = b""
        while part := client.recv(65_536):
            received += part
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.1") == 1


def test_request_that_comes_too_slowly_is_told_so_and_silence_is_cut(
    fleet: Fleet,
) -> None:
    with (
        socket.create_connection(address(fleet), timeout=13) as silent,
        socket.create_connection(address(fleet), timeout=13) as slow,
    ):
        slow.sendall(GET)
        assert slow.recv(65_536).startswith(b"HTTP/1.1 408 ")
        assert silent.recv(65_536) == b""
