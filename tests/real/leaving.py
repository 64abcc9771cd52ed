"""A client that leaves a real vLLM, and what came of it."""

import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from string import ascii_lowercase
from typing import Any
from uuid import uuid4

from gateway.admission.tokenizer import Tokenizer, load_tokenizer
from tests.integration.fleet import Fleet, Key, eventually
from tests.integration.raw_client import Leave, RawClient
from tests.real.engine import Engine, Inside

WORDS = 60
"""Of a prompt: enough for a moment before its first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What came of a client's leaving; all figures but the first are tokens.

    Attributes:
        quiet_seconds: From then until vLLM was last seen to work for it.
        running_usage: Whether vLLM was asked for it, as the adapter of that name does.
        stream: Whether events were asked for.
        prompt: As vLLM counts it, and as it was estimated.
        read: Deltas that came to the client, as the gateway counts them.
        progress: Of the completion, as the gateway told before.
        generated: By vLLM since the client asked.
        charged: For prompt and completion.
    """

    quiet_seconds: float
    running_usage: bool
    stream: bool
    prompt: tuple[int, int]
    read: int
    progress: int
    generated: int
    charged: int

    def check(self) -> None:
        """See that the charge is fair.

        Raises:
            AssertionError: It is not.
        """
        exact, estimated = self.prompt
        if not self.stream:
            assert self.charged == estimated, self
            return
        if self.charged == 0:
            assert self.read == self.progress == 0, self
            return
        # Another tokenizer's figure may be twice as large.
        most = self.generated if self.running_usage else 2 * self.generated + 64
        completion = self.charged - (exact if self.running_usage else estimated)
        assert max(self.read, self.progress) <= completion <= most, self


@dataclass(frozen=True, slots=True)
class Scene:
    """A client that has asked.

    Attributes:
        before: vLLM, when it had not asked yet: what works there then goes on working.
        asked: The request.
    """

    fleet: Fleet
    engine: Engine
    key: Key
    client: RawClient
    before: Inside
    asked: dict[str, Any]

    async def reserved(self) -> int:
        """Tokens held, as soon as there are some."""
        day = await eventually(
            lambda: self.fleet.day(self.key), lambda day: day["reserved"] > 0
        )
        assert day["reserved"] > 0
        return day["reserved"]

    async def progress(self) -> int:
        """Tokens of the completion, as the gateway told less than two seconds ago."""
        (one,) = (await self.fleet.quota(self.key))["reservations"]
        return one["progress"]

    async def leave(self, how: Leave) -> Left:
        """Have the client leave, and wait until all has come of it."""
        reserved, progress = await self.reserved(), await self.progress()
        await self.client.leave(how)
        seconds, after = await self.engine.watched(self.before.busy)
        return Left(
            quiet_seconds=round(seconds, 3),
            running_usage=self.asked["model"] == "vllm",
            stream=self.asked["stream"] is True,
            prompt=await self.prompt(reserved),
            read=self.read,
            progress=progress,
            generated=after.generated - self.before.generated,
            charged=await self.fleet.used(self.key),
        )

    async def prompt(self, reserved: int) -> tuple[int, int]:
        """Its tokens, exactly and as estimated when so many were reserved."""
        cap = self.asked["max_tokens"] * self.asked.get("n", 1)
        return await self.engine.prompt_tokens(self.asked["messages"]), reserved - cap

    @property
    def read(self) -> int:
        """Tokens that came to the client: events of vLLM's, or as we count them."""
        deltas = list(_deltas(bytes(self.client.body)))
        if self.asked["model"] == "vllm":
            return len(deltas)
        texts: dict[int, str] = {}
        for choice, text in deltas:
            texts[choice] = texts.get(choice, "") + text
        return sum(map(_ours().count, texts.values()))


@asynccontextmanager
async def asking(
    fleet: Fleet, engine: Engine, adapter: str, key: Key, **members: Any
) -> AsyncIterator[Scene]:
    """A client that asks something new, by that adapter."""
    letters = " ".join(random.choices(ascii_lowercase, k=WORDS))
    asked = {
        "model": adapter,
        "messages": [{"role": "user", "content": f"Sort {letters}."}],
        "stream": True,
        **members,
    }
    before = await engine.inside()
    async with RawClient(fleet, key, uuid4().hex) as client:
        await client.ask(**asked)
        yield Scene(fleet, engine, key, client, before, asked)


def _deltas(body: bytes) -> Iterator[tuple[int, str]]:
    """Choice and text of every whole event that has some."""
    for event in body.split(b"\n\n")[:-1]:
        for choice in json.loads(event.removeprefix(b"data: ")).get("choices", ()):
            if text := choice["delta"].get("content"):
                yield choice["index"], text


@cache
def _ours() -> Tokenizer:
    return load_tokenizer("o200k_base", None)
