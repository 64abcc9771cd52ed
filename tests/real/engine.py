"""vLLM from the inside: the judge of every cancel and every charge."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import anyio
import httpx

from tests.integration.fleet import eventually

type Messages = Sequence[Mapping[str, str]]

QUIET_SECONDS = 1.0
"""How long after a client has left vLLM may still work for it."""


@dataclass(frozen=True, slots=True)
class Inside:
    """What its metrics say.

    Attributes:
        running, waiting: Requests, now; each choice is one.
        generated: Tokens, ever.
    """

    running: int
    waiting: int
    generated: int

    @property
    def busy(self) -> int:
        """All requests it has."""
        return self.running + self.waiting


class Engine:
    """A vLLM, asked past the gateway; to be used in a block.

    Args:
        base_url: Ends in ``/v1``.
        model: Its name there.
    """

    def __init__(self, base_url: str, model: str) -> None:
        self._model = model
        root = base_url.removesuffix("/v1")
        self._client = httpx.AsyncClient(base_url=root, timeout=30, trust_env=False)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def inside(self) -> Inside:
        """Its metrics."""
        text = (await self._client.get("/metrics")).raise_for_status().text
        return Inside(
            running=_sum(text, "vllm:num_requests_running"),
            waiting=_sum(text, "vllm:num_requests_waiting"),
            generated=_sum(text, "vllm:generation_tokens_total"),
        )

    async def watched(self, busy: int) -> tuple[float, Inside]:
        """For how long it still had more requests than that; and how it is at last.

        It is looked at for ``QUIET_SECONDS``: a request of which it does not speak yet
        would show.
        """
        began = last_busy = anyio.current_time()
        now = await self.inside()
        while anyio.current_time() < began + QUIET_SECONDS:
            now = await self.inside()
            if now.busy > busy:
                last_busy = anyio.current_time()
        assert now.busy <= busy, f"vLLM goes on: {now}"
        return last_busy - began, now

    async def quiet(self) -> Inside:
        """The same, as soon as it has nothing to do."""
        now = await eventually(self.inside, lambda now: now.busy == 0, 10)
        assert now.busy == 0
        return now

    async def at_work(self, requests: int = 1) -> Inside:
        """The same, as soon as it has so many requests."""
        now = await eventually(self.inside, lambda now: now.busy >= requests, 10)
        assert now.busy >= requests
        return now

    async def prompt_tokens(self, messages: Messages) -> int:
        """How long it finds a chat's prompt."""
        question = {"model": self._model, "messages": messages}
        answer = await self._client.post("/tokenize", json=question)
        return int(answer.raise_for_status().json()["count"])


def _sum(text: str, name: str) -> int:
    found = re.findall(rf"^{name}\{{.*\}} (\S+)$", text, re.MULTILINE)
    return round(sum(map(float, found)))


def listed_model(base_url: str, secret: str = "") -> tuple[str, int]:
    """The first model of a server, and how many tokens its context has."""
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    answer = httpx.get(f"{base_url}/models", headers=headers, trust_env=False)
    first = answer.raise_for_status().json()["data"][0]
    return first["id"], first["max_model_len"]
