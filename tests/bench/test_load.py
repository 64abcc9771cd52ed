import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketStream

from bench.load import AnswerBroken, Crowd, Door, Load, StreamCheck, ask
from bench.processes import free_port
from bench.provider import serve
from bench.wire import DONE, Events, Pace, whole_answer
from streaming.dialects.chat import ChatDialect
from streaming.dialects.reading import TokenUsage
from tests.integration.fleet import eventually

CHUNKS = 5
LOAD = Load(Pace(CHUNKS))

type Fault = Callable[[list[bytes]], list[bytes]]


def events(pace: Pace = LOAD.pace) -> list[bytes]:
    made = Events(pace, usage=False, running=False)
    texts = [made.text(number, time.monotonic_ns()) for number in range(pace.chunks)]
    return [made.role(), *texts, *made.end()]


def check(answer: list[bytes], load: Load = LOAD, asked_ns: int = 0) -> int:
    """Read an answer piece by piece; how many chunks it had."""
    reader = StreamCheck(load, asked_ns)
    for piece in answer:
        reader.feed(piece, time.monotonic_ns())
    return reader.end(time.monotonic_ns())


def lose(answer: list[bytes]) -> list[bytes]:
    return answer[:3] + answer[4:]


def lose_last(answer: list[bytes]) -> list[bytes]:
    return answer[:-2] + answer[-1:]


def repeat(answer: list[bytes]) -> list[bytes]:
    return answer[:3] + answer[2:]


def swap(answer: list[bytes]) -> list[bytes]:
    return [*answer[:2], answer[3], answer[2], *answer[4:]]


def merge(answer: list[bytes]) -> list[bytes]:
    second = answer[2].partition(b'"content":"')[2].partition(b'"')[0]
    return [answer[0], answer[1].replace(b' "}', b" " + second + b'"}'), *answer[3:]]


def change(answer: list[bytes]) -> list[bytes]:
    return [*answer[:2], answer[2].replace(b'"1@', b'"7@'), *answer[3:]]


def change_text(answer: list[bytes]) -> list[bytes]:
    return [*answer[:5], answer[5].replace(b"@", b"#"), *answer[6:]]


def change_stamp(answer: list[bytes]) -> list[bytes]:
    return [*answer[:2], answer[2].replace(b"@", b"@9"), *answer[3:]]


def cut_off(answer: list[bytes]) -> list[bytes]:
    return answer[:-1]


def go_on(answer: list[bytes]) -> list[bytes]:
    return [*answer, DONE]


FAULTS = (
    lose, lose_last, repeat, swap, merge, change, change_text, change_stamp, cut_off,
    go_on,
)  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 300, 100_000])
def test_check_counts_every_chunk_when_bytes_come_in_pieces(size: int) -> None:
    whole = b"".join(events())
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert check(pieces) == CHUNKS


@pytest.mark.parametrize("fault", FAULTS)
def test_check_refuses_an_answer_when_it_was_tampered_with(fault: Fault) -> None:
    answer = fault(events())
    with pytest.raises(AnswerBroken):
        check(answer)


def test_check_refuses_a_chunk_when_it_was_sent_before_the_request() -> None:
    answer = events()
    with pytest.raises(AnswerBroken):
        check(answer, asked_ns=time.monotonic_ns())


def test_check_refuses_a_whole_answer_when_a_token_is_lost() -> None:
    load = Load(Pace(20), stream=False)
    answer = whole_answer(load.pace, time.monotonic_ns())
    assert check([answer], load) == 20
    with pytest.raises(AnswerBroken):
        check([answer.replace(b" 7@", b" ")], load)


@pytest.mark.parametrize("running", [True, False])
def test_events_say_what_vllm_says_when_usage_is_asked_for(running: bool) -> None:
    made = Events(LOAD.pace, usage=True, running=running)
    texts = [made.text(number, 1) for number in range(CHUNKS)]
    dialect = ChatDialect()
    read = [
        dialect.read(event.removeprefix(b"data: ").strip())
        for event in [made.role(), *texts, *made.end()]
    ]
    assert [reading.has_usage for reading in read[:-2]] == [running] * (CHUNKS + 1)
    assert read[-2].usage == TokenUsage(prompt_tokens=19, completion_tokens=CHUNKS)
    assert read[CHUNKS].finishes == ((0, "length"),)


@asynccontextmanager
async def provider() -> AsyncIterator[Door]:
    """The provider in this event loop, once it listens."""
    port = free_port()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, port)
        with anyio.fail_after(5):
            while not await _listens(port):  # noqa: ASYNC110 - it tells nobody
                await anyio.sleep(0.01)
        yield Door(port)
        tasks.cancel_scope.cancel()


async def closed_at(door: Door) -> dict[str, int]:
    """When streams were closed, as the provider says."""
    closed: dict[str, int] = json.loads(await ask(door, "/stats"))["closed"]
    return closed


async def _listens(port: int) -> bool:
    try:
        await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
    except OSError:
        return False
    return True


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [True, False])
async def test_load_counts_all_answers_when_connections_are_used_again(
    stream: bool,
) -> None:
    load = Load(Pace(4, 1), stream=stream, concurrency=3, requests=2)
    async with provider() as door, Crowd(door, load) as crowd:
        seen = await crowd.finish()
    assert seen.answers == 6
    assert seen.chunks == len(seen.delays_ns) == (24 if stream else 0)
    assert len(seen.first_ns) == (6 if stream else 0)


@pytest.mark.anyio
async def test_load_reads_nothing_when_its_readers_are_stuck() -> None:
    load = Load(Pace(100_000), concurrency=2, reads=False)
    async with provider() as door, Crowd(door, load) as crowd:
        before, sent = -1, 0
        while sent != before:
            await anyio.sleep(0.2)
            before, sent = sent, json.loads(await ask(door, "/stats"))["sent"]
        assert crowd.seen.chunks == 0
        assert sent < 2 * 100_000 * 200


@pytest.mark.anyio
async def test_provider_notes_the_time_when_a_client_leaves_in_mid_stream() -> None:
    async with provider() as door:
        async with Crowd(door, Load(Pace(2, 3_600_000))) as crowd:
            await crowd.begun()
            (client,) = crowd.clients
            left = client.leave()
        closed = await eventually(lambda: closed_at(door), bool)
    assert list(closed) == [client.number]
    assert left <= closed[client.number] <= time.monotonic_ns()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\ndata: [DONE]\n\n",
    ],
    ids=["closed", "status", "empty"],
)
async def test_load_says_so_when_an_answer_is_none(answer: bytes) -> None:
    async def reply(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.listeners[0].extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, reply)
        async with Crowd(Door(port), LOAD) as crowd:
            with pytest.raises(AnswerBroken):
                await crowd.finish()
        tasks.cancel_scope.cancel()
