"""No single input keeps the event loop from its other clients for long."""

import json
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from tests.gateway.providers.raw_server import Peer, RawServer
from tests.integration import watched_loop
from tests.integration.fleet import Fleet, Plan, eventually
from tests.integration.watched_loop import NOTE

pytestmark = pytest.mark.anyio

MOST_SECONDS = 0.1
"""50 ms are promised; the rest is for a machine that is slower or shared."""
MEBIBYTE = 1_048_576
KEYS = 10_000
_LOOK_TURNS = 20
_USAGE = {"prompt_tokens": 7, "completion_tokens": 9}
_COUNTS = json.dumps(_USAGE).encode()


@dataclass
class Said:
    """What the provider says to everybody."""

    answer: bytes = b""

    async def script(self, peer: Peer) -> None:
        """Say it."""
        ends = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
        with suppress(*ends):
            while True:
                await peer.request()
                await peer.send(self.answer)


@dataclass
class Watched:
    """A gateway whose event loop is watched."""

    fleet: Fleet
    said: Said
    note: Path

    async def longest_block(self) -> float:
        """Seconds, since it was last asked; once all that was done has been seen."""
        _, turns = self._read()
        await eventually(self._turns, lambda now: now > turns + _LOOK_TURNS, 10)
        longest, _ = self._read()
        with self.note.open("r+b") as note:
            note.write(NOTE.pack(0.0, 0.0))
        return longest

    async def ask(self, body: bytes, path: str = "/v1/chat/completions") -> int:
        """Ask the provider's only model; the status of the answer."""
        async with self.fleet.client(self.fleet.keys[0]) as client:
            answer = await client.post(path, content=body)
            return answer.status_code

    async def _turns(self) -> float:
        await anyio.lowlevel.checkpoint()
        return self._read()[1]

    def _read(self) -> tuple[float, float]:
        longest, turns = NOTE.unpack(self.note.read_bytes())
        return longest, turns


@asynccontextmanager
async def watched(directory: Path, keys: int = 8) -> AsyncIterator[Watched]:
    note = directory / "note"
    note.write_bytes(NOTE.pack(0.0, 0.0))
    said = Said(whole(b'{"choices":[],"usage":%b}' % _COUNTS))
    async with RawServer(said.script) as provider:
        plan = Plan(
            models={},
            providers={"raw": provider.url("/v1")},
            unlimited=keys,
            keys_file=True,
            server={"max_body_bytes": 8 * MEBIBYTE},
            command=(sys.executable, watched_loop.__file__, str(note), "gateway"),
        )
        async with Fleet(plan) as fleet:
            gateway = Watched(fleet, said, note)
            await gateway.ask(chat())
            await gateway.longest_block()
            yield gateway


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One loop for all tests here: the provider and the gateway stay."""
    return "asyncio"


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    async with watched(tmp_path_factory.mktemp("watched")) as gateway:
        yield gateway


def whole(body: bytes, status: int = 200, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def events(*payloads: bytes) -> bytes:
    finish = b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
    said = (*payloads, finish, b'{"choices":[],"usage":%b}' % _COUNTS, b"[DONE]")
    body = b"".join(b"data: %b\n\n" % one for one in said)
    return whole(body, kind="text/event-stream")


def delta(beside: bytes = b"", **members: object) -> bytes:
    choice = {"index": 0, "delta": members, "finish_reason": None, "usage": _USAGE}
    text = json.dumps({"choices": [choice]}, ensure_ascii=False).encode()
    return text[:-1] + beside + b"}"


def chat(**members: object) -> bytes:
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "raw", "max_tokens": 10**6, "messages": messages, **members}
    return json.dumps(body, ensure_ascii=False).encode()


def filled(member: bytes, joint: bytes = b",") -> bytes:
    """A list of as many of these as a body may hold."""
    return b"[" + joint.join([member] * (1_000_000 // (len(member) + 1))) + b"]"


def chat_of(listed: bytes) -> bytes:
    return b'{"model":"raw","max_tokens":1,"messages":%b}' % listed


PROMPTS: Mapping[str, tuple[bytes, int]] = {
    "one text": (
        chat_of(b'[{"role":"user","content":"%b"}]' % (b"a b " * 250_000)),
        200,
    ),
    "blanks": (chat_of(b'[{"role":"user","content":"%b"}]' % (b" " * 1_000_000)), 200),
    "emoji": (chat(user="😀" * 240_000), 200),
    "escapes": (chat(user='\n"\\' * 160_000), 200),
    "small messages": (chat_of(filled(b'{"role":"user","content":"hi"}')), 200),
    "parts": (
        chat_of(b'[{"content":%b}]' % filled(b'{"type":"text","text":"x"}')),
        200,
    ),
    "empty messages": (chat_of(filled(b"{}")), 400),
    "empty lists": (chat_of(filled(b"[[[]]]")), 400),
    "brackets without end": (b"[" * 1_000_000, 400),
    "numbers": (chat_of(b'[{"content":%b}]' % filled(b"0")), 200),
    "names": (json.dumps({str(n): 0 for n in range(80_000)}).encode(), 400),
    "one name": (b"{" + b'"a":1,' * 160_000 + b'"a":1}', 400),
}


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_loop_runs_on_when_a_body_is_as_large_as_it_may_be(
    gateway: Watched, prompt: str
) -> None:
    body, status = PROMPTS[prompt]
    gateway.said.answer = whole(b'{"choices":[],"usage":%b}' % _COUNTS)
    assert len(body) <= MEBIBYTE
    assert await gateway.ask(body) == status
    assert await gateway.longest_block() < MOST_SECONDS


LONG_PROMPTS: Mapping[str, bytes] = {
    "one text": chat(messages=[{"role": "user", "content": "river lock " * 480_000}]),
    "messages": chat(messages=[{"role": "user", "content": "river " * 12}] * 50_000),
}


@pytest.mark.parametrize("prompt", LONG_PROMPTS)
async def test_loop_runs_on_when_a_prompt_has_five_megabytes(
    gateway: Watched, prompt: str
) -> None:
    body = LONG_PROMPTS[prompt]
    gateway.said.answer = whole(b'{"choices":[],"usage":%b}' % _COUNTS)
    assert len(body) > 5_000_000
    assert await gateway.ask(body) == 200
    assert await gateway.longest_block() < MOST_SECONDS


_NESTED_USAGE = b',"x":' + filled(b'{"usage":{"a":{}}}')[:-60_000].rpartition(b",")[0]
ANSWERS: Mapping[str, bytes] = {
    "one event": events(delta(content="river lock " * 90_000)),
    "one event of letters": events(delta(content="a" * 1_000_000)),
    "arguments": events(
        delta(tool_calls=[{"function": {"arguments": "a b " * 250_000}}])
    ),
    "usage in text": events(delta(content='"usage":{' * 80_000)),
    "usage elsewhere": events(delta(_NESTED_USAGE + b"]")),
    "usage with many details": events(
        delta(b',"usage":{"d":{%b}}' % (b'"a":1,' * 150_000 + b'"b":1'))
    ),
    "usage in many choices": events(
        b'{"choices":%b}'
        % filled(b'{"index":0,"delta":{"content":"a"},"usage":%b}' % _COUNTS)[:300_000]
        .rpartition(b",")[0]
        .join([b"", b"]"])
    ),
    "finishes of many choices": events(
        json.dumps({
            "choices": [
                {"index": index, "delta": {}, "finish_reason": "stop"}
                for index in range(16_000)
            ]
        }).encode()
    ),
    "tiny events": events(*[delta(content="a")] * 10_000),
    "error of brackets": events(b'{"error":{"message":"%b"}}' % (b"<" * 900_000)),
    "status of digits": events(b'{"error":{"code":"%b"}}' % (b"4" * 900_000)),
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_loop_runs_on_when_a_provider_streams_what_it_should_not(
    gateway: Watched, answer: str
) -> None:
    gateway.said.answer = ANSWERS[answer]
    status = await gateway.ask(chat(stream=True))
    assert status == (502 if b'"error"' in ANSWERS[answer] else 200)
    assert await gateway.longest_block() < MOST_SECONDS


_CHOICE = b'{"index":0,"message":{"content":5}}'
WHOLE_ANSWERS: Mapping[str, tuple[int, bytes]] = {
    "text": (
        200,
        b'{"choices":[{"message":{"content":"%b"}}]}' % (b"a b " * 2_000_000),
    ),
    "half": (502, b'{"choices":[{"message":{"content":"%b' % (b"a b " * 2_000_000)),
    "odd choices": (200, b'{"choices":%b}' % filled(_CHOICE)),
    "no choices": (200, b'{"x":%b}' % filled(b'{"a":1}')),
}


@pytest.mark.parametrize("answer", WHOLE_ANSWERS)
async def test_loop_runs_on_when_a_whole_answer_is_large(
    gateway: Watched, answer: str
) -> None:
    status, body = WHOLE_ANSWERS[answer]
    gateway.said.answer = whole(body)
    assert await gateway.ask(chat()) == status
    assert await gateway.longest_block() < MOST_SECONDS


async def test_loop_runs_on_when_vectors_are_many(gateway: Watched) -> None:
    vector = b'{"embedding":[%b]}' % b",".join([b"0.012345678"] * 1536)
    body = b'{"data":[%b],"usage":{"prompt_tokens":7,"total_tokens":7}}'
    gateway.said.answer = whole(body % b",".join([vector] * 500))
    asked = json.dumps({"model": "raw", "input": [*range(10_000)]}).encode()
    assert await gateway.ask(asked, "/v1/embeddings") == 200
    assert await gateway.longest_block() < MOST_SECONDS


@pytest.mark.parametrize("message", ["<" * 65_000, "< " * 32_000, " " * 65_000])
async def test_loop_runs_on_when_a_refusal_is_heavy_with_markup(
    gateway: Watched, message: str
) -> None:
    gateway.said.answer = whole(json.dumps({"error": message}).encode(), status=400)
    assert await gateway.ask(chat()) == 400
    assert await gateway.longest_block() < MOST_SECONDS


async def test_refusal_is_passed_on_when_its_code_has_a_million_digits(
    gateway: Watched,
) -> None:
    gateway.said.answer = whole(
        b'{"error":{"message":"no","code":"%b"}}' % (b"4" * 60_000), status=400
    )
    assert await gateway.ask(chat()) == 400


async def test_loop_runs_on_when_ten_thousand_keys_are_read_again(
    tmp_path: Path,
) -> None:
    async with watched(tmp_path, KEYS) as gateway:
        (process,) = gateway.fleet.gateways
        process.hang_up()
        taken = re.compile(rf"taken: {KEYS} keys")

        async def log() -> str:
            await anyio.lowlevel.checkpoint()
            return process.log

        assert taken.search(
            await eventually(log, lambda text: bool(taken.search(text)))
        )
        assert await gateway.longest_block() < MOST_SECONDS
        async with gateway.fleet.client(gateway.fleet.keys[-1]) as client:
            answer = await client.get("/v1/quota")
        assert answer.status_code == 200
