"""The promises of a plain connection, kept over TLS, and those of TLS itself."""

import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio
import httpx
import pytest

from gateway.providers.transport import PooledTransport
from gateway.providers.transport.connection import READ_BYTES
from streaming.errors import UpstreamTruncated
from tests.gateway.providers.asking import (
    ask,
    body_of,
    connection_of,
    fetch,
    read,
    read_on,
)
from tests.gateway.providers.raw_server import AT_ONCE, Peer, Pusher, RawServer, Silent

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Certificate:
    """Of 127.0.0.1, signed by itself."""

    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    path = tmp_path_factory.mktemp("tls")
    key, cert = path / "key.pem", path / "cert.pem"
    command = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        f" -keyout {key} -out {cert} -days 2 -subj /CN=test"
        f" -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return Certificate(server, ssl.create_default_context(cafile=str(cert)))


@pytest.fixture
async def transport(certificate: Certificate) -> AsyncIterator[PooledTransport]:
    async with PooledTransport(ssl_context=certificate.client) as transport:
        yield transport


async def test_connection_is_reused_over_tls(
    transport: PooledTransport, certificate: Certificate
) -> None:
    async with RawServer(Peer.answer_all, certificate.server) as server:
        assert await fetch(transport, server.url()) == b"0"
        assert await fetch(transport, server.url()) == b"0"


async def test_bodies_arrive_whole_when_they_take_many_records(
    transport: PooledTransport, certificate: Certificate
) -> None:
    async def script(peer: Peer) -> None:
        request = await peer.request()
        await peer.answer(request.partition(b"\r\n\r\n")[2])

    content = bytes(range(256)) * 8000
    async with RawServer(script, certificate.server) as server:
        response = await ask(transport, server.url(), content=content)
        assert await read(response) == content


@pytest.mark.parametrize(
    "context", [ssl.create_default_context(), None], ids=["unknown issuer", "name"]
)
async def test_connection_is_refused_when_the_certificate_is_not_the_servers(
    certificate: Certificate, context: ssl.SSLContext | None
) -> None:
    async with RawServer(Peer.answer_all, certificate.server) as server:
        url = server.url()
        if context is None:
            context, url = certificate.client, url.replace("127.0.0.1", "localhost")
        async with PooledTransport(ssl_context=context) as transport:
            with pytest.raises(httpx.ConnectError):
                await ask(transport, url)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.9\r\n", b""])
async def test_connection_is_refused_when_the_server_speaks_no_tls(
    transport: PooledTransport, greeting: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(greeting)

    async with RawServer(script) as server:
        with pytest.raises(httpx.ConnectError):
            await ask(transport, server.url().replace("http:", "https:"))


async def test_server_sees_the_close_when_the_handshake_takes_too_long(
    transport: PooledTransport,
) -> None:
    gone = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.closed()
        gone.set()

    async with RawServer(script) as server:
        url = server.url().replace("http:", "https:")
        with pytest.raises(httpx.ConnectTimeout):
            await ask(transport, url, connect=0.05)
        with anyio.fail_after(AT_ONCE):
            await gone.wait()


@pytest.mark.parametrize("farewell", [True, False])
async def test_unframed_body_is_whole_only_when_tls_says_so(
    transport: PooledTransport, certificate: Certificate, farewell: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        if farewell:
            await peer.say_farewell()

    async with RawServer(script, certificate.server) as server:
        response = await ask(transport, server.url())
        content = bytearray()
        if farewell:
            await read_on(body_of(response), content)
        else:
            with pytest.raises(UpstreamTruncated):
                await read_on(body_of(response), content)
        assert content == b"hello"


@pytest.mark.parametrize("farewell", [True, False])
async def test_whole_body_is_read_when_the_server_closed_while_it_was_left_alone(
    transport: PooledTransport, certificate: Certificate, farewell: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"x" * 200_000)
        if farewell:
            await peer.say_farewell()

    async with RawServer(script, certificate.server) as server:
        response = await ask(transport, server.url())
        await anyio.sleep(0.1)
        assert await read(response) == b"x" * 200_000


async def test_server_is_stopped_when_nobody_reads_over_tls(
    transport: PooledTransport, certificate: Certificate
) -> None:
    pusher = Pusher()
    async with RawServer(pusher, certificate.server) as server:
        body = body_of(await ask(transport, server.url()))
        await pusher.stuck()
        connection = connection_of(body)
        assert 65536 < len(connection.buffer) <= 65536 + READ_BYTES
        assert pusher.sent <= len(connection.buffer) + (1 << 19)
        await body.aclose()


async def test_server_sees_the_close_when_a_reader_leaves_over_tls(
    transport: PooledTransport, certificate: Certificate
) -> None:
    silent = Silent(b"HTTP/1.1 200 OK\r\n\r\n")
    async with RawServer(silent, certificate.server) as server:
        response = await ask(transport, server.url())
        await response.aclose()
        with anyio.fail_after(AT_ONCE):
            await silent.gone.wait()


async def test_body_is_truncated_when_a_record_is_forged(
    transport: PooledTransport, certificate: Certificate
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await peer.send_raw(b"\x17\x03\x03\x00\x20" + bytes(32))
        await peer.closed()

    async with RawServer(script, certificate.server) as server:
        content = bytearray()
        response = await ask(transport, server.url())
        with pytest.raises(UpstreamTruncated):
            await read_on(body_of(response), content)
        assert content == b"hello"
