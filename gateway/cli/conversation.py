"""One question and its streamed answer, on a terminal."""

import json
from time import monotonic
from typing import TYPE_CHECKING

import httpx
import typer
from httpx_sse import SSEError, connect_sse

from streaming.dialects.chat import ChatDialect

if TYPE_CHECKING:
    from streaming.dialects.reading import TokenUsage

_TIMEOUT = httpx.Timeout(10.0, read=120.0)


class ChatFailed(Exception):
    """The server refused, failed or could not be reached; the message says why."""


def converse(prompt: str, *, model: str, base_url: str, key: str) -> None:
    """Print the answer as it streams, then its figures.

    Raises:
        ChatFailed: There is no whole answer.
    """
    request = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    url = f"{base_url.rstrip('/')}/chat/completions"
    headers = {"authorization": f"Bearer {key}"}
    try:
        with httpx.Client(timeout=_TIMEOUT) as client:
            answer = _Answer()
            with connect_sse(
                client, "POST", url, json=request, headers=headers
            ) as source:
                _check(source.response)
                for event in source.iter_sse():
                    answer.take(event.data)
    except (httpx.HTTPError, SSEError) as error:
        raise ChatFailed(str(error) or type(error).__name__) from error
    typer.echo(f"\n\n{answer.figures()}")


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    try:
        message = json.loads(response.content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200]
    reason = f"{response.status_code}: {message}"
    raise ChatFailed(reason)


class _Answer:
    def __init__(self) -> None:
        self._dialect = ChatDialect()
        self._asked_at = monotonic()
        self._first_at: float | None = None
        self._usage: TokenUsage | None = None

    def take(self, data: str) -> None:
        """Print what an event says."""
        reading = self._dialect.read(data.encode())
        if reading.error is not None:
            raise ChatFailed(reading.error.message)
        for _, text in reading.texts:
            self._first_at = self._first_at or monotonic()
            typer.echo(text, nl=False)
        self._usage = reading.usage or self._usage

    def figures(self) -> str:
        """Time to first token, tokens per second, usage."""
        if self._first_at is None:
            return "no text"
        first = f"first token {(self._first_at - self._asked_at) * 1000:.0f} ms"
        if self._usage is None:
            return first
        seconds = max(monotonic() - self._first_at, 1e-9)
        tokens = self._usage.completion_tokens
        return (
            f"{first} · {tokens / seconds:.0f} tokens/s"
            f" · {self._usage.prompt_tokens} prompt + {tokens} completion tokens"
        )
