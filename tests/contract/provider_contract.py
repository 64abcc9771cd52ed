"""What any provider must do: one suite, run on each adapter (``test_providers.py``)."""

import socket
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle

import anyio
import pytest

from gateway.errors import ConnectTimeout, UpstreamLost, UpstreamUnreachable
from streaming.errors import UpstreamFault, UpstreamInvalid
from tests.contract.provider_desk import (
    CANARY,
    EVENTS,
    OK,
    Noting,
    body_of,
    call_of,
    enter,
    provider_at,
)
from tests.contract.provider_requests import RequestContract
from tests.gateway.providers.raw_server import AT_ONCE, Peer, Pusher, RawServer, Silent
from tests.integration.fleet import free_port
from tests.integration.test_transcripts import PIECES, TRANSCRIPTS, Transcript

_NOT_RELAYED = {
    "compressed": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "no status": b"HTTP/1.1 999 What\r\n\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH_9.9\r\n",
    **{
        f"moved {status}": b"HTTP/1.1 %d Moved\r\nlocation: /v1/elsewhere\r\n"
        b"content-length: 0\r\n\r\n" % status
        for status in (301, 302, 303, 307, 308)
    },
}
TRUNCATED = {"llamacpp/sigterm_stream"}
"""Of the transcripts: their bodies have no proper end."""
_BROKEN_BODIES = {
    "short": OK[:-1],
    "no chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\nx\r\n",
    "no last chunk, after a blank": b"HTTP/1.1 200 OK\r\n"
    b"transfer-encoding: chunked \r\n\r\n1\r\n{\r\n",
    "no last chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
}


@pytest.mark.anyio
class ProviderContract(RequestContract):
    """Subclass it and give the fixture ``adapter``."""

    # How often a request is sent.

    @pytest.mark.parametrize("status", [400, 401, 408, 409, 429, 500, 502, 503, 599])
    async def test_error_is_handed_on_and_nothing_is_sent_again(
        self, adapter: str, status: int
    ) -> None:
        fields = b"\r\nretry-after: 0\r\nx-should-retry: true\r\n\r\n"
        raw = OK.replace(b"200", b"%d" % status).replace(b"\r\n\r\n", fields)
        noting = Noting(raw)
        sent: Counter[str] = Counter()
        async with (
            RawServer(noting) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            call = call_of(stream=True, on_send=lambda: sent.update(["request"]))
            async with provider.open(call, "theirs") as upstream:
                assert (upstream.status, upstream.attempts) == (status, 1)
                assert upstream.headers["retry-after"] == "0"
                assert await body_of(upstream) == (b"{}", True)
        assert len(noting.requests) == sent["request"] == server.accepted == 1

    @pytest.mark.parametrize("raw", _NOT_RELAYED.values(), ids=_NOT_RELAYED)
    async def test_answer_is_invalid_and_left_when_it_cannot_be_relayed(
        self, adapter: str, raw: bytes
    ) -> None:
        noting = Noting(raw)
        async with (
            RawServer(noting) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            with pytest.raises(UpstreamInvalid):
                await enter(provider)
            await noting.gone()
        assert len(noting.requests) == server.accepted == 1

    async def test_server_is_lost_for_good_when_it_hangs_up_before_the_head(
        self, adapter: str
    ) -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.reset()

        async with (
            RawServer(script) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            with pytest.raises(UpstreamLost) as raised:
                await enter(provider)
        assert server.accepted == 1
        assert not raised.value.try_next  # it may have accepted the request

    async def test_server_is_unreachable_when_it_refuses(self, adapter: str) -> None:
        sent: list[None] = []
        url = f"http://127.0.0.1:{free_port()}/v1"
        async with provider_at(adapter, url) as provider:
            with pytest.raises(UpstreamUnreachable) as raised:
                await enter(provider, call_of(on_send=lambda: sent.append(None)))
        assert raised.value.try_next
        assert sent == []

    async def test_connecting_ends_in_time_when_nobody_accepts(
        self, adapter: str
    ) -> None:
        with (
            socket.socket() as listener,
            socket.socket() as one,
            socket.socket() as two,
        ):
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for filler in (one, two):
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            async with provider_at(adapter, url, connect_seconds=0.05) as provider:
                with anyio.fail_after(AT_ONCE), pytest.raises(ConnectTimeout) as raised:
                    await enter(provider)
        assert raised.value.try_next

    async def test_request_is_sent_twice_when_a_kept_connection_was_stale(
        self, adapter: str
    ) -> None:
        requests: list[bytes] = []

        async def script(peer: Peer) -> None:
            requests.append(await peer.request())
            await peer.send(OK)
            requests.append(await peer.request())
            if peer.number == 0:
                await peer.reset()

        sent: list[None] = []
        call = call_of(on_send=lambda: sent.append(None))
        async with (
            RawServer(script) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            for attempts in (1, 2):
                async with provider.open(call, "theirs") as upstream:
                    assert await body_of(upstream) == (b"{}", True)
                    assert upstream.attempts == attempts
        assert len(requests) == len(sent) == 3
        assert len(set(requests)) == 1

    # What of the answer arrives.

    @pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda one: one.name)
    async def test_answer_is_what_was_recorded_however_it_was_split(
        self, adapter: str, transcript: Transcript
    ) -> None:
        splits = [PIECES["whole"], PIECES["odd"], (1000, 1)]

        async def script(peer: Peer) -> None:
            await peer.request()
            for piece in pieces_of(transcript.wire, splits[peer.number]):
                await peer.send(piece)

        head, fields = recorded_head(transcript)
        async with (
            RawServer(script) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            for _ in splits:
                call = call_of(stream=transcript.is_stream)
                async with provider.open(call, "theirs") as upstream:
                    body, complete = await body_of(upstream)
                assert (upstream.status, upstream.headers) == (head, fields)
                assert body == transcript.body
                assert complete is (transcript.name not in TRUNCATED)

    async def test_header_has_lower_names_and_the_last_of_a_repeated_field(
        self, adapter: str
    ) -> None:
        fields = b"X-Some: first\r\nx-some: l\xe4st \r\nContent-Length: 0\r\n\r\n"
        interim = b"HTTP/1.1 103 Early Hints\r\nx-early: 1\r\n\r\n"
        async with (
            RawServer(Noting(interim + b"HTTP/1.1 200 OK\r\n" + fields)) as server,
            provider_at(adapter, server.url("/v1")) as provider,
            provider.open(call_of(), "theirs") as upstream,
        ):
            assert upstream.headers == {"x-some": "l\xe4st", "content-length": "0"}
            assert await body_of(upstream) == (b"", True)

    @pytest.mark.parametrize("raw", _BROKEN_BODIES.values(), ids=_BROKEN_BODIES)
    async def test_body_is_truncated_when_its_end_is_not_proper(
        self, adapter: str, raw: bytes
    ) -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(raw)

        async with (
            RawServer(script) as server,
            provider_at(adapter, server.url("/v1")) as provider,
            provider.open(call_of(), "theirs") as upstream,
        ):
            assert await body_of(upstream) == (b"{", False)

    async def test_server_waits_when_nobody_reads(self, adapter: str) -> None:
        pusher = Pusher()
        async with (
            RawServer(pusher) as server,
            provider_at(adapter, server.url("/v1")) as provider,
            provider.open(call_of(stream=True), "theirs"),
        ):
            await pusher.stuck()
            assert 0 < pusher.sent < 1 << 20

    # What becomes of the connection.

    async def test_connection_is_used_again_when_the_body_was_read_to_its_end(
        self, adapter: str
    ) -> None:
        noting = Noting()
        async with (
            RawServer(noting) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            for _ in range(3):
                async with provider.open(call_of(), "theirs") as upstream:
                    assert await body_of(upstream) == (b"{}", True)
        assert len(noting.requests) == 3
        assert server.accepted == 1

    @pytest.mark.parametrize("read", [False, True])
    @pytest.mark.parametrize("raises", [False, True])
    async def test_connection_closes_when_the_block_is_left_in_mid_body(
        self, adapter: str, read: bool, raises: bool
    ) -> None:
        noting = Noting(EVENTS + b"data: 1\n\n")
        async with (
            RawServer(noting) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            with suppress(LookupError):
                async with provider.open(call_of(stream=True), "theirs") as upstream:
                    if read:
                        assert await upstream.body.receive() == b"data: 1\n\n"
                    if raises:
                        raise LookupError
            await noting.gone()

    @pytest.mark.parametrize("said", [b"", b"HTTP/1.1 2", EVENTS, EVENTS + b"data"])
    async def test_connection_closes_when_waiting_is_cancelled(
        self, adapter: str, said: bytes
    ) -> None:
        silent = Silent(said)
        async with (
            RawServer(silent) as server,
            provider_at(adapter, server.url("/v1")) as provider,
            anyio.create_task_group() as tasks,
        ):

            async def ask() -> None:
                async with provider.open(call_of(stream=True), "theirs") as upstream:
                    await body_of(upstream)

            tasks.start_soon(ask)
            await silent.asked.wait()
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True), anyio.fail_after(AT_ONCE):
                await silent.gone.wait()

    async def test_connection_closes_when_connecting_is_cancelled(
        self, adapter: str
    ) -> None:
        came, gone = anyio.Event(), anyio.Event()

        async def script(peer: Peer) -> None:
            await peer.receive()  # the first message of TLS, which gets no answer
            came.set()
            await peer.closed()
            gone.set()

        async with RawServer(script) as server:
            url = server.url("/v1").replace("http:", "https:")
            async with (
                provider_at(adapter, url) as provider,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(enter, provider)
                await came.wait()
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True), anyio.fail_after(AT_ONCE):
                    await gone.wait()

    # What is told of a failure.

    async def test_key_shows_nowhere_when_things_fail(self, adapter: str) -> None:
        noting = Noting(b"nonsense\r\n")
        async with (
            RawServer(noting) as server,
            provider_at(adapter, server.url("/v1")) as provider,
        ):
            with pytest.raises(UpstreamFault) as raised:
                await enter(provider)
            opening = provider.open(call_of(), "theirs")
            shown = [repr(provider), str(provider), repr(opening)]
        shown += traceback.format_exception(raised.value)
        assert CANARY not in "".join(shown)
        assert "127.0.0.1" not in raised.value.message
        assert provider.redact(f"a {CANARY} b") == "a *** b"


def pieces_of(wire: bytes, sizes: tuple[int, ...]) -> Iterator[bytes]:
    """The bytes in pieces of these sizes, in turn."""
    at = 0
    for size in cycle(sizes):
        if at >= len(wire):
            return
        yield wire[at : at + size]
        at += size


def recorded_head(transcript: Transcript) -> tuple[int, dict[str, str]]:
    """Status and fields, as they were recorded."""
    first, *fields = transcript.wire.partition(b"\r\n\r\n")[0].split(b"\r\n")
    found = [field.decode("ascii").partition(":") for field in fields]
    return int(first.split()[1]), {
        name.lower(): value.strip() for name, _, value in found
    }
