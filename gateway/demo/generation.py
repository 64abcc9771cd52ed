"""What a request wants generated: the members vLLM would look at, checked like there.

The prompt is counted by a rule anyone can repeat: one token per word (a run without
white space) of each message's text, and four for each message around it; in
``/v1/completions`` one per word, or the number of token ids. Images count nothing.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Final

import msgspec

from gateway.demo.request_reader import Request

CHAT_COMPLETIONS: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"

_MESSAGE_TOKENS: Final = 4
_MOST_CHOICES: Final = 128


class Usage(Enum):
    """Where an answer shows its usage."""

    NOWHERE = auto()
    AT_END = auto()
    """In an event of its own, or as the member of a whole answer."""
    CONTINUOUS = auto()
    """In every event, and then in one of its own."""
    ON_FINISH = auto()
    """In the event that has the finish_reason, as transformers does it."""
    AT_CHOICE = auto()
    """The same, inside the choice."""


class Refused(Exception):
    """The request is refused before anything is generated, with vLLM's envelope."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
    ) -> None:
        self.status = status
        self.envelope = error_envelope(message, param, status)
        super().__init__(message)


class Malformed(Refused):
    """The body is no JSON, or a member is missing or of a wrong type."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "body")
        self.envelope["error"]["type"] = self.status.phrase


def error_envelope(
    message: str, param: str | None, status: HTTPStatus
) -> dict[str, dict[str, object]]:
    """An error as vLLM writes it: ``type`` after the status, ``code`` a number."""
    kind = status.phrase.replace(" ", "").removesuffix("Error") + "Error"
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": param,
            "code": status.value,
        }
    }


@dataclass(frozen=True, slots=True)
class Generation:
    """One accepted request.

    Attributes:
        chat: Chat completion, or the older text completion.
        request_id: Of the request.
        reused: Whether it is not the first request of its connection.
        created: Unix time in seconds.
        model: As the request names it.
        stream: Events, or one JSON body.
        prompts: Tokens of each prompt; chat has one.
        n: Choices per prompt.
        cap: Most tokens per choice, or None.
        usage: Where it goes.
    """

    chat: bool
    request_id: str
    reused: bool
    created: int
    model: str
    stream: bool
    prompts: Sequence[int]
    n: int
    cap: int | None
    usage: Usage

    @property
    def id(self) -> str:
        """Of the answer: the request's, marked with its kind."""
        return f"{'chat' if self.chat else ''}cmpl-{self.request_id}"

    @property
    def choices(self) -> int:
        """Choices of all prompts; choice ``i`` answers prompt ``i // n``."""
        return self.n * len(self.prompts)


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Body(msgspec.Struct, kw_only=True):
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class _Message(msgspec.Struct):
    content: str | list[Mapping[str, Any]] | None = None


class _ChatBody(_Body, kw_only=True):
    messages: list[_Message]


class _CompletionBody(_Body, kw_only=True):
    prompt: str | list[str | int | list[int]]


_CHAT: Final = msgspec.json.Decoder(_ChatBody)
_COMPLETION: Final = msgspec.json.Decoder(_CompletionBody)


def read_generation(request: Request, default_model: str) -> Generation:
    """The generation a request asks for.

    Raises:
        Malformed: The body is no JSON, or a member is missing or of a wrong type.
        Refused: A cap or ``n`` is out of range, there is no message, or
            ``stream_options`` come without ``stream``.
    """
    chat = request.path == CHAT_COMPLETIONS
    asked = _decoded(request.body, chat=chat)
    _check(asked)
    return Generation(
        chat=chat,
        request_id=request.request_id,
        reused=request.reused,
        created=time.time_ns() // 10**9,
        model=asked.model or default_model,
        stream=bool(asked.stream),
        prompts=_prompts(asked),
        n=asked.n or 1,
        cap=_cap(asked),
        usage=_usage(asked),
    )


def _decoded(body: bytes, *, chat: bool) -> _ChatBody | _CompletionBody:
    try:
        return _CHAT.decode(body) if chat else _COMPLETION.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from error


def _check(asked: _Body) -> None:
    cap = _cap(asked)
    if cap is not None and cap < 1:
        message = f"max_tokens must be at least 1, got {cap}. "
        raise Refused(message + f"(parameter=max_tokens, value={cap})", "max_tokens")
    if asked.n is not None and not 1 <= asked.n <= _MOST_CHOICES:
        bound = "at least 1" if asked.n < 1 else f"at most {_MOST_CHOICES}"
        message = f"n must be {bound}, got {asked.n}."
        raise Refused(message)
    if isinstance(asked, _ChatBody) and not asked.messages:
        message = "Cannot apply chat template to an empty conversation. "
        raise Refused(message + "Provide at least one message.")
    if asked.stream_options is not None and not asked.stream:
        message = "Stream options can only be defined when `stream=True`. "
        raise Refused(message + "(parameter=stream_options)", "stream_options")


def _cap(asked: _Body) -> int | None:
    if asked.max_completion_tokens is not None:
        return asked.max_completion_tokens
    return asked.max_tokens


def _usage(asked: _Body) -> Usage:
    if not asked.stream:
        return Usage.AT_END
    options = asked.stream_options
    if options is None or not options.include_usage:
        return Usage.NOWHERE
    return Usage.CONTINUOUS if options.continuous_usage_stats else Usage.AT_END


def _prompts(asked: _ChatBody | _CompletionBody) -> tuple[int, ...]:
    if isinstance(asked, _ChatBody):
        words = sum(_words(message.content) for message in asked.messages)
        return (words + _MESSAGE_TOKENS * len(asked.messages),)
    prompt = asked.prompt
    if isinstance(prompt, str):
        return (len(prompt.split()),)
    if all(isinstance(item, int) for item in prompt):
        return (len(prompt),)
    return tuple(
        len(item.split()) if isinstance(item, str) else _ids(item) for item in prompt
    )


def _ids(item: int | list[int]) -> int:
    return 1 if isinstance(item, int) else len(item)


def _words(content: str | list[Mapping[str, Any]] | None) -> int:
    if isinstance(content, str):
        return len(content.split())
    texts = (part.get("text") for part in content or ())
    return sum(len(text.split()) for text in texts if isinstance(text, str))
