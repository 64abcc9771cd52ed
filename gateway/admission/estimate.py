"""How many tokens a request may cost, before anything is sent.

A chat's prompt is what tiktoken's cookbook makes of it: 3 tokens for each message, the
tokens of its role, name and content, 1 for a ``name``, 3 for the reply; then tool
calls, and tools, functions and response format as compact JSON. Text is data: the
names of special tokens in it are text. What has no rule counts as its JSON.

============================ =================================================
prompt text, in characters   is counted
============================ =================================================
up to 64 Ki                  at once
up to 1 Mi                   in a worker thread
more                         not at all: its size in bytes stands for it
============================ =================================================
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from itertools import chain
from typing import Final

import anyio
import msgspec
from anyio import to_thread

from gateway.admission.media import file_tokens, image_tokens, recording_tokens
from gateway.admission.tokenizer import Tokenizer, tokens_from_bytes
from gateway.errors import InvalidRequest

INLINE_CHARACTERS = 65_536
"""Work done on the event loop: some 15 ms."""

COUNTED_CHARACTERS = 1_048_576
"""Prompt text that is counted at all."""

MOST_CHOICES = 128
"""Largest ``n``, as OpenAI has it."""

LARGEST_CAP = 2**31 - 1

_ITEM_CHARACTERS: Final = 32  # what an item costs besides its text, in text
_MESSAGE_TOKENS: Final = 3
_NAME_TOKENS: Final = 1
_REPLY_TOKENS: Final = 3
_CAPS: Final = ("max_tokens", "max_completion_tokens")
_CHOICES: Final = ("n", "best_of")

_compact: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

type Body = Mapping[str, object]
"""A request's parsed JSON object."""

type Item = str | int
"""A part of a prompt: text to be counted, or tokens known already."""


class Completion(msgspec.Struct, frozen=True):
    """The most a provider may generate.

    Attributes:
        cap: Output tokens per choice.
        choices: Choices that are generated, whether or not they are returned.
        default_cap: The cap to send upstream; None when the client named one.
    """

    cap: int
    choices: int
    default_cap: int | None

    @property
    def tokens(self) -> int:
        """Over all choices."""
        return self.cap * self.choices


class Estimate(msgspec.Struct, frozen=True):
    """What to hold for a request.

    Attributes:
        prompt_tokens: Of everything that is sent.
        completion_tokens: The most the provider may generate, over all choices.
        default_cap: The cap per choice to send upstream; None when the client named
            one.
    """

    prompt_tokens: int
    completion_tokens: int
    default_cap: int | None


class Prompt(StrEnum):
    """Where a request has its prompt; the value is the member."""

    MESSAGES = "messages"  # a chat
    PROMPT = "prompt"  # completions: text, token ids, or a list of either
    INPUT = "input"  # embeddings: the same, and nothing is generated


class Estimator:
    """Estimates the requests for one model.

    Args:
        tokenizer: Counts its prompts.
        model_cap: Output tokens per choice where the client names no cap.
        limiter: How many worker threads may count long prompts at a time.

    Attributes:
        tokenizer: Counts its prompts.
    """

    __slots__ = ("_limiter", "_model_cap", "tokenizer")

    def __init__(
        self, tokenizer: Tokenizer, model_cap: int, limiter: anyio.CapacityLimiter
    ) -> None:
        self.tokenizer = tokenizer
        self._model_cap = model_cap
        self._limiter = limiter

    async def estimate(
        self, body: Body, key_cap: int | None, prompt: Prompt = Prompt.MESSAGES
    ) -> Estimate:
        """What this request may cost.

        Args:
            body: The request.
            prompt: Where its prompt stands.
            key_cap: The largest cap per choice this key may name; None is any.

        Raises:
            InvalidRequest: A cap or a number of choices is not what it must be.
        """
        prompt_tokens = await self._prompt_tokens(prompt_items(body, prompt))
        if prompt is Prompt.INPUT:
            return Estimate(prompt_tokens, completion_tokens=0, default_cap=None)
        completion = estimate_completion(body, self._model_cap, key_cap)
        tokens = completion.tokens * prompts_in(body, prompt)
        return Estimate(prompt_tokens, tokens, completion.default_cap)

    async def _prompt_tokens(self, items: Iterator[Item]) -> int:
        """Walk the prompt only as far as may be counted here; a thread does the rest.

        A thread cannot be stopped, so a cancelled caller waits for it, and the limiter
        stays true.
        """
        seen: list[Item] = []
        work = 0
        for item in items:
            seen.append(item)
            work += _ITEM_CHARACTERS + (len(item) if isinstance(item, str) else 0)
            if work > INLINE_CHARACTERS:
                return await to_thread.run_sync(
                    count_items,
                    chain(seen, items),
                    self.tokenizer,
                    limiter=self._limiter,
                )
        return count_items(seen, self.tokenizer)


def estimate_prompt(body: Body, tokenizer: Tokenizer) -> int:
    """Tokens of the request's prompt, by the rules above, counted here and now."""
    return count_items(prompt_items(body, Prompt.MESSAGES), tokenizer)


def count_items(items: Iterable[Item], tokenizer: Tokenizer) -> int:
    """Tokens of a prompt's items together."""
    known = 0
    texts: list[str] = []
    for item in items:
        if isinstance(item, str):
            texts.append(item)
        else:
            known += item
    if sum(map(len, texts)) > COUNTED_CHARACTERS:
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        return known + tokens_from_bytes(size)
    return known + sum(map(tokenizer.count, texts))


def prompt_items(body: Body, prompt: Prompt) -> Iterator[Item]:
    """What a request's prompt is made of, in small steps."""
    if prompt is Prompt.MESSAGES:
        return _chat_items(body)
    return _text_items(body.get(prompt))


def prompts_in(body: Body, prompt: Prompt) -> int:
    """How many prompts the request has; each is answered for itself."""
    value = body.get(prompt)
    if prompt is Prompt.MESSAGES or not isinstance(value, list):
        return 1
    return max(1, sum(not isinstance(one, int) for one in value))


def _text_items(value: object) -> Iterator[Item]:
    """Text, token ids, or a list of either."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, int):
                yield 1
            else:
                yield from _text_items(one)
    elif value is not None:
        yield _compact(value)


def _chat_items(body: Body) -> Iterator[Item]:
    yield _REPLY_TOKENS
    for message in _listed(body.get("messages")):
        yield _MESSAGE_TOKENS
        yield from _message_items(message)
    for name in ("tools", "functions", "response_format"):
        if value := body.get(name):
            yield _compact(value)


def estimate_completion(body: Body, model_cap: int, key_cap: int | None) -> Completion:
    """The most the provider may generate for this request.

    Every cap the client names reaches the provider, so the largest counts, be it above
    the model's own default.

    Args:
        body: The request.
        model_cap: Output tokens per choice where the client names no cap.
        key_cap: The largest cap per choice this key may name; None is any.

    Raises:
        InvalidRequest: A cap is no integer from 1 to ``key_cap``, or ``n`` or
            ``best_of`` none from 1 to ``MOST_CHOICES``; ``param`` says which.
    """
    most = LARGEST_CAP if key_cap is None else key_cap
    caps = [_integer(body, name, most) for name in _CAPS]
    cap = max((cap for cap in caps if cap is not None), default=None)
    choices = max(_integer(body, name, MOST_CHOICES) or 1 for name in _CHOICES)
    if cap is not None:
        return Completion(cap, choices, default_cap=None)
    default_cap = min(model_cap, most)
    return Completion(default_cap, choices, default_cap)


def _integer(body: Body, name: str, most: int) -> int | None:
    """The member's value; None when it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        message = f"{name} must be an integer from 1 to {most}."
        raise InvalidRequest(message, param=name)
    return value


def _message_items(message: object) -> Iterator[Item]:
    if not isinstance(message, Mapping):
        yield _compact(message)
        return
    yield from _content_items(message.get("role"))
    if message.get("name") is not None:
        yield _NAME_TOKENS
        yield from _content_items(message["name"])
    yield from _content_items(message.get("content"))
    yield from _content_items(message.get("refusal"))
    yield from _content_items(
        message.get("reasoning_content") or message.get("reasoning")
    )
    yield from _call_items(message.get("function_call"))
    for call in _listed(message.get("tool_calls")):
        yield from _call_items(call)


def _content_items(content: object) -> Iterator[Item]:
    if isinstance(content, list):
        for part in content:
            yield from _part_items(part)
    elif isinstance(content, str):
        yield content
    elif content is not None:
        yield _compact(content)


def _part_items(part: object) -> Iterator[Item]:
    if not isinstance(part, Mapping):
        yield from _content_items(part)
        return
    match part.get("type"):
        case "text" | "input_text" | "output_text":
            yield from _content_items(part.get("text"))
        case "refusal":
            yield from _content_items(part.get("refusal"))
        case "image_url" | "input_image":
            yield image_tokens(part)
        case "input_audio" | "audio_url" | "video_url":
            yield recording_tokens(part)
        case "file" | "input_file":
            yield file_tokens(part)
        case _:
            yield _compact(part)


def _call_items(call: object) -> Iterator[Item]:
    """A tool call, or a legacy function call, which is the inside of one."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if isinstance(function, Mapping) and "arguments" in function:
        yield from _content_items(function.get("name"))
        yield from _content_items(function["arguments"])
    elif call is not None:
        yield _compact(call)


def _listed(value: object) -> list[object]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
