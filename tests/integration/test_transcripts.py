"""What real servers were recorded to say, replayed through a whole gateway.

Whole and in pieces of several sizes, to a client that asked for all usage and to one
that asked for none. The reference is the recorded body as ``httpx-sse`` reads it.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import httpx_sse
import pytest

from tests.gateway.providers.raw_server import Peer, RawServer
from tests.integration.fleet import Fleet, Key, Plan
from tests.integration.raw_client import QUESTION

pytestmark = pytest.mark.anyio

DIRECTORY = Path(__file__).parents[1] / "transcripts"
PIECES = {
    "whole": (1 << 30,),
    "bytes": (1,),
    "odd": (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144),
}
WAYS = (("whole", True), ("whole", False), ("bytes", True), ("odd", False))
"""The pieces, and whether all usage is asked for."""
FAILED = {
    "llamacpp/sigterm_stream": (200, "upstream_truncated"),
    "vllm/bad_logit_bias_s": (400, "invalid_request"),
    "vllm/engine_killed_stream": (200, "upstream_error"),
    "vllm/err_bad_schema_s": (400, "invalid_request"),
    "vllm/err_maxtok_neg": (400, "invalid_request"),
    "vllm/err_stream_options_nonstream": (400, "invalid_request"),
    "vllm/noauth": (502, "upstream_error"),
    "vllm/sigterm_stream": (200, "upstream_error"),
}
"""Status and code; all other answers are good."""
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


@dataclass(frozen=True)
class Transcript:
    """One recorded answer; ``name`` is its path without its ending."""

    name: str

    @property
    def body(self) -> bytes:
        """Without HTTP framing."""
        body = DIRECTORY / f"{self.name}.body"
        if body.exists():
            return body.read_bytes()
        return self.wire.partition(b"\r\n\r\n")[2]

    @property
    def wire(self) -> bytes:
        """With it: as recorded, or in one chunk where that is not known."""
        raw = DIRECTORY / f"{self.name}.raw"
        if raw.exists():
            return raw.read_bytes()
        return _HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(self.body), self.body)

    @property
    def is_stream(self) -> bool:
        """Whether events had been asked for."""
        return self.body.startswith((b"data:", b":"))

    @property
    def path(self) -> str:
        """Where it had been asked for."""
        ending = "completions" if "/compl_" in self.name else "chat/completions"
        return f"/v1/{ending}"

    @property
    def usage(self) -> int | None:
        """Tokens of the last usage in it."""
        found = re.findall(rb'"usage":(\{(?:[^{}]|\{[^{}]*\})*\})', self.body)
        if not found:
            return None
        usage = json.loads(found[-1])
        return int(usage["prompt_tokens"] + usage["completion_tokens"])


TRANSCRIPTS = [
    Transcript(name)
    for name in sorted({
        str(path.relative_to(DIRECTORY).with_suffix(""))
        for path in DIRECTORY.glob("*/*")
        if path.suffix in {".body", ".raw"}
    })
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The fleet stands on the loop of all tests."""
    return "asyncio"


async def replay(peer: Peer) -> None:
    """Answer as the request says: the model names the answer, the prompt its pieces."""
    request = (await peer.request()).partition(b"\r\n\r\n")[2]
    asked = json.loads(request)
    rest = Transcript(asked["model"]).wire
    for size in cycle(PIECES[asked["user"]]):
        await peer.send(rest[:size])
        rest = rest[size:]
        if not rest:
            return


@pytest.fixture(scope="module")
async def fleet() -> AsyncIterator[Fleet]:
    async with RawServer(replay) as server:
        replayed = [
            {
                "name": one.name,
                "candidates": [{"provider": "replay", "model": one.name}],
            }
            for one in TRANSCRIPTS
        ]
        provider = {
            "name": "replay",
            "adapter": "vllm",
            "base_url": server.url("/v1"),
        }
        extra = {
            "providers": [provider],
            "models": replayed,
            "routing": {"breaker": {"failures": 1000}},
        }
        async with Fleet(Plan(models={}, extra=extra)) as fleet:
            yield fleet


def test_every_failure_has_a_transcript() -> None:
    assert FAILED.keys() <= {one.name for one in TRANSCRIPTS}


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda one: one.name)
async def test_transcript_reaches_the_client_as_it_was_recorded(
    fleet: Fleet, transcript: Transcript
) -> None:
    for pieces, all_usage in WAYS:
        key = fleet.new_key() if pieces == "whole" else fleet.keys[0]
        answer = await ask(fleet, key, transcript, pieces, all_usage)
        assert failure(answer) == FAILED.get(transcript.name, (200, ""))
        if transcript.is_stream and answer.status_code == 200:
            check_events(transcript, answer, all_usage=all_usage)
        elif answer.status_code == 200:
            assert answer.content == transcript.body
        if transcript.name in FAILED or pieces != "whole":
            continue
        used = await fleet.used(key)
        assert used == transcript.usage or (transcript.usage is None and used > 0)


async def ask(
    fleet: Fleet,
    key: Key,
    transcript: Transcript,
    pieces: str,
    all_usage: bool,
    prefix: str = "",
) -> httpx.Response:
    """Ask for a transcript, of the model that is its name after a prefix."""
    usage = {"include_usage": True, "continuous_usage_stats": True}
    body: dict[str, object] = {
        "model": prefix + transcript.name,
        "messages": [{"role": "user", "content": QUESTION}],
        "prompt": QUESTION,
        "user": pieces,
        "n": 2 if transcript.name.endswith("n2") else 1,
    }
    if transcript.is_stream:
        body |= {"stream": True, "stream_options": usage if all_usage else None}
    async with fleet.client(key) as client:
        return await client.post(transcript.path, json=body)


def failure(answer: httpx.Response) -> tuple[int, str]:
    """Status and code; an empty one when nothing failed."""
    is_stream = answer.headers["content-type"].startswith("text/event-stream")
    last = list(events(answer.content))[-1] if is_stream else answer.text
    error = {} if last == "[DONE]" else json.loads(last).get("error", {})
    return answer.status_code, error.get("code", "")


def check_events(
    transcript: Transcript, answer: httpx.Response, *, all_usage: bool
) -> None:
    recorded = list(events(transcript.body))
    relayed = list(events(answer.content))
    if transcript.name in FAILED:
        *relayed, _ = relayed
        recorded = recorded[: len(relayed)] if all_usage else recorded
        assert relayed
    if all_usage:
        assert relayed == recorded
    else:
        seen = [json.loads(one) for one in relayed if one != "[DONE]"]
        shown = list(without_usage(recorded))
        assert seen == (shown[: len(seen)] if transcript.name in FAILED else shown)


def without_usage(recorded: list[str]) -> Iterator[Any]:
    """What a client may see that did not ask for usage."""
    for payload in recorded:
        if payload == "[DONE]":
            continue
        event = json.loads(payload)
        usage = event.pop("usage", None)
        if usage is None or event["choices"]:
            yield event


def events(body: bytes) -> Iterator[str]:
    """The payloads of a stream, as another reader than ours finds them."""
    headers = {"content-type": "text/event-stream"}
    response = httpx.Response(200, headers=headers, content=body)
    return (event.data for event in httpx_sse.EventSource(response).iter_sse())
