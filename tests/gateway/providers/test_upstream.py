import socket
import traceback
from contextlib import aclosing, suppress

import anyio
import pytest

from gateway.errors import ConnectTimeout, UpstreamLost, UpstreamUnreachable
from gateway.providers.openai import OpenAIClient
from gateway.providers.provider import Upstream
from gateway.providers.upstream import UpstreamClient
from streaming.errors import (
    UpstreamFault,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamTruncated,
)
from tests.gateway.providers.raw_server import AT_ONCE, Peer, RawServer, Script

pytestmark = pytest.mark.anyio

CANARY = "sk-canary-5up3r-s3cr3t"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-length: 2\r\n\r\n{}"


def saying(raw: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(raw)
        await peer.closed()

    return script


@pytest.fixture(params=[UpstreamClient, OpenAIClient])
def client_type(request: pytest.FixtureRequest) -> type[UpstreamClient]:
    made: type[UpstreamClient] = request.param
    return made


def client_for(
    client_type: type[UpstreamClient], server: RawServer, api_key: str | None = CANARY
) -> UpstreamClient:
    return client_type(
        server.url("/v1"), api_key=api_key, connect_seconds=2.0, buffer_bytes=65536
    )


async def body_of(upstream: Upstream) -> bytes:
    return b"".join([data async for data in upstream.body])


@pytest.mark.parametrize(
    ("stream", "accept"), [(True, b"text/event-stream"), (False, b"application/json")]
)
async def test_client_sends_its_own_header_and_nothing_else(
    client_type: type[UpstreamClient], stream: bool, accept: bytes
) -> None:
    requests = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(OK)
        await peer.closed()

    async with (
        RawServer(script) as server,
        aclosing(client_for(client_type, server)) as client,
        client.open("chat/completions", b"{}", "id-1", stream=stream) as upstream,
    ):
        assert await body_of(upstream) == b"{}"
        assert upstream.status == 200
        assert upstream.headers["content-type"] == "application/json"
        assert upstream.attempts == 1
    lines = requests[0].split(b"\r\n")
    assert lines[0] == b"POST /v1/chat/completions HTTP/1.1"
    assert sorted(line.lower() for line in lines[1:-2]) == [
        b"accept-encoding: identity",
        b"accept: " + accept,
        b"authorization: bearer " + CANARY.encode(),
        b"content-length: 2",
        b"content-type: application/json",
        b"host: 127.0.0.1:%d" % server.port,
        b"user-agent: sluice/0.1.0",
        b"x-request-id: id-1",
    ]
    assert lines[-1] == b"{}"


async def test_client_sends_no_key_when_there_is_none(
    client_type: type[UpstreamClient],
) -> None:
    requests = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(OK)

    async with (
        RawServer(script) as server,
        aclosing(client_for(client_type, server, api_key=None)) as client,
        client.open("chat/completions", b"{}", "id-1", stream=True),
    ):
        assert b"authorization" not in requests[0].lower()


REFUSED = {
    "compressed": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b",
    "moved": b"HTTP/1.1 307 Temporary Redirect\r\nlocation: /x\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "no status": b"HTTP/1.1 999 What\r\n\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH_9.9\r\n",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
async def test_answer_is_invalid_when_it_cannot_be_relayed(
    client_type: type[UpstreamClient], raw: bytes
) -> None:
    gone = anyio.Event()

    async def script(peer: Peer) -> None:
        await saying(raw)(peer)
        gone.set()

    async with (
        RawServer(script) as server,
        aclosing(client_for(client_type, server)) as client,
    ):
        with pytest.raises(UpstreamInvalid):
            await enter(client)
        with anyio.fail_after(AT_ONCE):
            await gone.wait()


async def enter(client: UpstreamClient) -> None:
    async with client.open("chat/completions", b"{}", "id-1", stream=True):
        pass


@pytest.mark.parametrize("coding", [b"identity", b"Identity", b""])
async def test_answer_is_relayed_when_its_coding_is_none(
    client_type: type[UpstreamClient], coding: bytes
) -> None:
    raw = OK.replace(b"\r\n\r\n", b"\r\ncontent-encoding: " + coding + b"\r\n\r\n")
    async with (
        RawServer(saying(raw)) as server,
        aclosing(client_for(client_type, server)) as client,
        client.open("chat/completions", b"{}", "id-1", stream=True) as upstream,
    ):
        assert await body_of(upstream) == b"{}"


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503, 599])
async def test_answer_is_handed_on_when_it_is_an_error(
    client_type: type[UpstreamClient], status: int
) -> None:
    raw = OK.replace(b"200", b"%d" % status)
    async with (
        RawServer(saying(raw)) as server,
        aclosing(client_for(client_type, server)) as client,
        client.open("chat/completions", b"{}", "id-1", stream=True) as upstream,
    ):
        assert upstream.status == status
        assert await body_of(upstream) == b"{}"


async def test_provider_is_unreachable_when_it_refuses(
    client_type: type[UpstreamClient],
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        client = client_type(url, api_key=CANARY, connect_seconds=1.0)
        with pytest.raises(UpstreamUnreachable):
            await enter(client)


async def test_provider_is_lost_for_good_when_it_hangs_up_before_the_head(
    client_type: type[UpstreamClient],
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.reset()

    async with (
        RawServer(script) as server,
        aclosing(client_for(client_type, server)) as client,
    ):
        with pytest.raises(UpstreamLost) as raised:
            await enter(client)
    assert not raised.value.try_next  # it may have accepted the request


async def test_connecting_may_go_on_elsewhere_when_its_time_is_up(
    client_type: type[UpstreamClient],
) -> None:
    with socket.socket() as listener, socket.socket() as first, socket.socket() as last:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, last):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        client = client_type(url, api_key=None, connect_seconds=0.05)
        with pytest.raises(ConnectTimeout) as raised:
            await enter(client)
    assert raised.value.try_next
    assert isinstance(raised.value, UpstreamTimeout)
    assert raised.value.status == 504


async def test_attempts_are_two_when_a_kept_connection_was_stale(
    client_type: type[UpstreamClient],
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        if peer.number == 0:
            await peer.reset()

    async with (
        RawServer(script) as server,
        aclosing(client_for(client_type, server)) as client,
    ):
        async with client.open("chat/completions", b"{}", "id-1", stream=True) as up:
            await body_of(up)
        async with client.open("chat/completions", b"{}", "id-2", stream=True) as up:
            assert up.attempts == 2


@pytest.mark.parametrize("way", ["end", "error", "cancellation"])
async def test_provider_sees_the_close_when_the_block_is_left(
    client_type: type[UpstreamClient], way: str
) -> None:
    gone = anyio.Event()

    async def script(peer: Peer) -> None:
        await saying(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n")(peer)
        gone.set()

    async with (
        RawServer(script) as server,
        aclosing(client_for(client_type, server)) as client,
    ):
        with anyio.CancelScope() as scope, suppress(LookupError):
            async with client.open("chat/completions", b"{}", "id-1", stream=True):
                if way == "error":
                    raise LookupError
                if way == "cancellation":
                    scope.cancel()
                    await anyio.sleep_forever()
        with anyio.fail_after(AT_ONCE):
            await gone.wait()


async def test_body_is_truncated_when_the_provider_hangs_up(
    client_type: type[UpstreamClient],
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK[:-1])

    async with (
        RawServer(script) as server,
        aclosing(client_for(client_type, server)) as client,
        client.open("chat/completions", b"{}", "id-1", stream=True) as upstream,
    ):
        assert await upstream.body.receive() == b"{"
        with pytest.raises(UpstreamTruncated):
            await upstream.body.receive()


async def test_key_shows_nowhere_when_things_fail(
    client_type: type[UpstreamClient],
) -> None:
    server = RawServer(saying(b"nonsense\r\n"))
    async with server, aclosing(client_for(client_type, server)) as client:
        with pytest.raises(UpstreamFault) as raised:
            await enter(client)
        exchange = client.open("chat/completions", b"{}", "id-1", stream=True)
        shown = [repr(client), str(client), repr(exchange), raised.value.message]
    shown += traceback.format_exception(raised.value)
    assert CANARY not in "".join(shown)
    assert "127.0.0.1" not in raised.value.message


@pytest.mark.parametrize("key", ["with\nline", "with\x00nul", "kéy"])
def test_key_is_refused_unseen_when_it_fits_no_header(
    client_type: type[UpstreamClient], key: str
) -> None:
    with pytest.raises(ValueError, match="API key") as raised:
        client_type("http://127.0.0.1:1/v1", api_key=key, connect_seconds=1.0)
    assert key not in str(raised.value)


@pytest.mark.parametrize("path", ["/health", "health"])
async def test_get_asks_from_the_servers_root(
    client_type: type[UpstreamClient], path: str
) -> None:
    requests = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(b"HTTP/1.1 503 Not Yet\r\ncontent-length: 4\r\n\r\nbusy")

    async with (
        RawServer(script) as server,
        aclosing(client_for(client_type, server)) as client,
    ):
        assert await client.get(path) == (503, b"busy")
    assert requests[0].startswith(b"GET /health HTTP/1.1\r\n")


async def test_get_stops_reading_when_the_answer_is_long(
    client_type: type[UpstreamClient],
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await peer.send(b"x" * 65536)

    async with (
        RawServer(script) as server,
        aclosing(client_for(client_type, server)) as client,
    ):
        assert await client.get("/health") == (200, b"x" * 65536)
