"""The way to the store: its breaker, its bounds, and its end."""

from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from gateway.admission.scripts import command
from gateway.admission.store import (
    FAILURES,
    PROBE_SECONDS,
    WAITING_CALLS,
    Breaker,
    Store,
    reply_of,
)
from gateway.errors import StoreUnavailable


def test_breaker_opens_at_the_second_failure_in_a_row() -> None:
    breaker = Breaker().failed(10.0)
    assert not breaker.is_open
    breaker = breaker.failed(11.0)
    assert breaker.is_open
    assert breaker.probe_at == 11.0 + PROBE_SECONDS


def test_breaker_stays_closed_when_answers_come_between_failures() -> None:
    breaker = Breaker()
    for now in range(10):
        breaker = breaker.failed(float(now)).answered()
        assert breaker == Breaker()


def test_breaker_waits_for_the_next_probe_when_one_fails() -> None:
    breaker = Breaker().failed(1.0).failed(2.0).failed(3.0)
    assert breaker.probe_at == 3.0 + PROBE_SECONDS


def test_breaker_is_on_trial_when_a_probe_has_connected() -> None:
    breaker = Breaker().failed(1.0).failed(2.0).connected()
    assert not breaker.is_open
    assert breaker.failures == FAILURES - 1
    assert breaker.failed(3.0).is_open
    assert breaker.answered() == Breaker()


def test_breaker_does_not_mind_a_new_connection_while_closed() -> None:
    assert Breaker(1).connected() == Breaker(1)


@pytest.fixture
async def mute_url() -> AsyncIterator[str]:
    """A store that answers the first ping and no call."""

    async def answer_once(client: SocketStream) -> None:
        async with client:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await client.receive()
                await client.send(b"+PONG\r\n")
                await anyio.sleep_forever()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer_once)
        yield f"redis://127.0.0.1:{port}"
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_calls_are_refused_outside_the_block(mute_url: str) -> None:
    store = Store(mute_url)
    with pytest.raises(StoreUnavailable):
        await store.call("PING")
    async with store:
        pass
    with pytest.raises(StoreUnavailable):
        await store.call("PING")


@pytest.mark.anyio
async def test_calls_under_way_fail_when_the_block_is_left(mute_url: str) -> None:
    async with Store(mute_url, timeout_seconds=5.0) as store:
        replies = [store.send(command("PING")) for _ in range(3)]
        await anyio.sleep(0.05)
        replies.append(store.send(command("PING")))
    for reply in replies:
        with pytest.raises(StoreUnavailable):
            reply_of(await reply)


@pytest.mark.anyio
async def test_no_more_calls_wait_than_can_be_answered(mute_url: str) -> None:
    async with Store(mute_url, timeout_seconds=5.0) as store:
        waiting = [store.send(command("PING")) for _ in range(WAITING_CALLS)]
        with pytest.raises(StoreUnavailable):
            waiting.append(store.send(command("PING")))


@pytest.mark.anyio
async def test_the_store_is_down_when_it_answers_no_calls(mute_url: str) -> None:
    changes: list[bool] = []
    async with Store(mute_url, timeout_seconds=0.05, on_change=changes.append) as store:
        for _ in range(FAILURES):
            with pytest.raises(StoreUnavailable):
                await store.call("PING")
        assert changes == [True, False]
        assert not store.is_up


@pytest.mark.anyio
async def test_a_second_connection_is_tried_at_once_when_the_first_is_mute() -> None:
    connections: list[SocketStream] = []

    async def answer_the_second(client: SocketStream) -> None:
        connections.append(client)
        async with client:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while await client.receive():
                    if len(connections) > 1:
                        await client.send(b"+PONG\r\n")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    changes: list[bool] = []
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer_the_second)
        url = f"redis://127.0.0.1:{port}"
        async with Store(url, timeout_seconds=0.1, on_change=changes.append) as store:
            with pytest.raises(StoreUnavailable):
                await store.call("PING")
            assert await store.call("PING") == b"PONG"
        tasks.cancel_scope.cancel()
    assert changes == [True]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b":one\r\n", b"$" * 100_000]
)
async def test_the_store_is_down_when_the_other_side_is_no_redis(
    garbage: bytes,
) -> None:
    async def talk(client: SocketStream) -> None:
        async with client:
            with suppress(anyio.BrokenResourceError):
                await client.send(garbage)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, talk)
        async with Store(f"redis://127.0.0.1:{port}") as store:
            with pytest.raises(StoreUnavailable):
                await store.call("PING")
        tasks.cancel_scope.cancel()
