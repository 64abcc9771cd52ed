"""Answers as vLLM 0.32 writes them, member by member in its order.

An answer is a sequence of parts, each one event (or the one body of an answer that is
not streamed); framing turns parts into writes. Faults are made of the same parts.

Two things are simpler than in vLLM: the end-of-sequence token is not counted, so that
``completion_tokens`` is what the text holds; and text is never a piece of a character.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cached_property
from http import HTTPStatus
from itertools import batched, cycle, repeat, takewhile
from typing import Final, Literal, NamedTuple, override

import msgspec

from gateway.demo import text, wire
from gateway.demo.generation import Generation, Usage
from gateway.demo.scenario import SimulatorSettings
from gateway.demo.wire import Ending, Step, Write

_FINGERPRINT: Final = "vllm-0.32.0-simulated"
_DONE: Final = b"data: [DONE]\n\n"
# An unpaced answer costs one system call per event otherwise.
_UNPACED_EVENTS_PER_WRITE: Final = 16
# Choices begin at different places of the text.
_CHOICE_STRIDE: Final = 97


class Kind(Enum):
    """What a part of an answer is."""

    ROLE = auto()
    CONTENT = auto()
    FINISH = auto()
    USAGE = auto()
    DONE = auto()


_BEGUN: Final = frozenset({Kind.ROLE, Kind.CONTENT})


class Part(NamedTuple):
    """One event, or one JSON body, without HTTP framing; ``due`` as in ``Write``."""

    kind: Kind
    due: float
    payload: bytes
    tokens: int = 0


@dataclass(frozen=True)
class Answer(ABC):
    """What will be sent for one generation if nothing goes wrong.

    Attributes:
        generation: What was asked for.
        settings: Pace and size.
        tokens: Of each choice.
        finish: The finish_reason; ``stop`` comes after the last token, the others
            with it.
    """

    generation: Generation
    settings: SimulatorSettings
    tokens: int
    finish: Literal["stop", "length", "abort", "error"]

    @property
    @abstractmethod
    def content_type(self) -> str:
        """Of the whole answer."""

    @property
    @abstractmethod
    def head_due(self) -> float:
        """When vLLM sends the header."""

    @abstractmethod
    def parts(self) -> Iterator[Part]:
        """All of it."""

    @abstractmethod
    def opening(self) -> Iterator[Part]:
        """What is sent before a fault in mid-stream."""

    @abstractmethod
    def next_part(self) -> Part:
        """What would be sent next after the opening."""

    @abstractmethod
    def steps(self) -> Iterator[Step]:
        """All of it, as it leaves."""

    def framed(self, parts: Iterable[Part]) -> Iterator[Write]:
        """Each part in a chunk of its own."""
        together = 1 if self.settings.rate else _UNPACED_EVENTS_PER_WRITE
        for batch in batched(parts, together, strict=False):
            data = b"".join([wire.chunk(part.payload) for part in batch])
            yield Write(batch[0].due, data, sum(part.tokens for part in batch))

    def due(self, sent: int) -> float:
        """When the token after ``sent`` tokens of each choice is made, in seconds."""
        pace = sent / self.settings.rate if self.settings.rate else 0.0
        return self.settings.first_token_ms / 1000 + pace

    def passage(self, choice: int, sent: int, count: int) -> str:
        """The next ``count`` tokens of a choice."""
        return text.passage(choice * _CHOICE_STRIDE + sent, count)

    def final_usage(self) -> dict[str, object]:
        """The usage of all choices together."""
        prompt = sum(self.generation.prompts)
        completion = self.tokens * self.generation.choices
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
        }


class StreamedAnswer(Answer):
    """An answer in events."""

    @property
    @override
    def content_type(self) -> str:
        return wire.EVENT_STREAM

    @property
    @override
    def head_due(self) -> float:
        return 0.0

    @override
    def parts(self) -> Iterator[Part]:
        yield from self._roles()
        yield from self._contents()
        if self.finish == "stop" or not self.tokens:
            for choice in range(self.generation.choices):
                event = self._event(choice, "", self.tokens, ends=True)
                yield Part(Kind.FINISH, self.due(0), event)
        if self.generation.usage in {Usage.AT_END, Usage.CONTINUOUS}:
            yield Part(Kind.USAGE, 0.0, self._usage_event())
        yield Part(Kind.DONE, 0.0, _DONE)

    @override
    def opening(self) -> Iterator[Part]:
        tokens = min(self.tokens, self.settings.fault_after_tokens)
        begun = replace(self, tokens=tokens, finish="stop")
        return takewhile(lambda part: part.kind in _BEGUN, begun.parts())

    @override
    def next_part(self) -> Part:
        made = self.settings.fault_after_tokens
        event = self._event(0, self.passage(0, made, 1), made + 1, ends=False)
        return Part(Kind.CONTENT, 0.0, event, 1)

    @override
    def steps(self) -> Iterator[Step]:
        yield Write(
            0.0, wire.chunked_head(self.content_type, self.generation.request_id)
        )
        yield from self.framed(self.parts())
        yield Write(0.0, wire.LAST_CHUNK)
        yield Ending.KEEP_ALIVE

    def _roles(self) -> Iterator[Part]:
        if not self.generation.chat:
            return
        for choice in range(self.generation.choices):
            event = (
                f'{self._prefix}{{"index":{choice},"delta":{{"role":"assistant",'
                f'"content":""}},"logprobs":null,"finish_reason":null}}]'
                f"{self._running_usage(choice, 0)}"
                ',"prompt_token_ids":null,"prompt_text":null}\n\n'
            )
            yield Part(Kind.ROLE, self.due(0), event.encode())

    def _contents(self) -> Iterator[Part]:
        fixed = self.settings.chunk_tokens
        sizes = repeat(fixed) if fixed else cycle((1, 2, 3))
        sent = 0
        while sent < self.tokens:
            size = min(next(sizes), self.tokens - sent)
            made = sent + size
            ends = made == self.tokens and self.finish != "stop"
            for choice in range(self.generation.choices):
                words = self.passage(choice, sent, size)
                event = self._event(choice, words, made, ends=ends)
                yield Part(Kind.CONTENT, self.due(sent), event, size)
            sent = made

    def _event(self, choice: int, words: str, made: int, *, ends: bool) -> bytes:
        """An event of ``choice``, which has ``made`` tokens with this one."""
        # The text is plain ASCII, and the end of a line all that JSON escapes in it.
        words = words.replace("\n", "\\n")
        chat = self.generation.chat
        reason = f'"{self.finish}"' if ends else "null"
        if chat:
            said = f'"delta":{{"content":"{words}"}}' if words else '"delta":{}'
        else:
            said = f'"text":"{words}"'
        stop = ',"stop_reason":null' if ends or not chat else ""
        prompt = "" if chat else ',"prompt_token_ids":null'
        return (
            f'{self._prefix}{{"index":{choice},{said},"logprobs":null,'
            f'"finish_reason":{reason}{stop}{prompt},"token_ids":null'
            f"{self._usage_at_choice(ends=ends)}}}]"
            f"{self._running_usage(choice, made)}{self._closing(ends=ends)}}}\n\n"
        ).encode()

    def _running_usage(self, choice: int, made: int) -> str:
        """Each choice counted for itself, as vLLM does until the last event."""
        if self.generation.usage is not Usage.CONTINUOUS:
            return ""
        prompt = self.generation.prompts[choice // self.generation.n]
        details = ',"completion_tokens_details":null' if self.generation.chat else ""
        return (
            f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + made},'
            f'"completion_tokens":{made}{details}}}'
        )

    def _closing(self, *, ends: bool) -> str:
        """What the event with the finish_reason has after its choices."""
        if not ends or self.generation.usage in {Usage.AT_END, Usage.CONTINUOUS}:
            return ""
        if self.generation.usage in {Usage.NOWHERE, Usage.AT_CHOICE}:
            return f',"system_fingerprint":"{_FINGERPRINT}"'
        usage = msgspec.json.encode(self.final_usage()).decode()
        return f',"system_fingerprint":"","usage":{usage}'

    def _usage_at_choice(self, *, ends: bool) -> str:
        if not ends or self.generation.usage is not Usage.AT_CHOICE:
            return ""
        return f',"usage":{msgspec.json.encode(self.final_usage()).decode()}'

    def _usage_event(self) -> bytes:
        cached = {"cached_tokens": 0}
        details = cached | ({"created_cache_tokens": 0} if self.generation.chat else {})
        usage = self.final_usage() | {"prompt_tokens_details": details}
        end = {"usage": usage, "system_fingerprint": _FINGERPRINT}
        members = msgspec.json.encode(end).decode()[1:]
        return f"{self._prefix}],{members}\n\n".encode()

    @cached_property
    def _prefix(self) -> str:
        """An event up to its choices."""
        asked = self.generation
        head = {
            "id": asked.id,
            "object": "chat.completion.chunk" if asked.chat else "text_completion",
            "created": asked.created,
            "model": asked.model,
        }
        return f'data: {msgspec.json.encode(head).decode()[:-1]},"choices":['


class JsonAnswer(Answer):
    """An answer in one JSON body."""

    @property
    @override
    def content_type(self) -> str:
        return wire.JSON

    @property
    @override
    def head_due(self) -> float:
        return self.due(max(self.tokens - 1, 0))

    @override
    def parts(self) -> Iterator[Part]:
        tokens = self.tokens * self.generation.choices
        yield Part(Kind.CONTENT, self.head_due, self._body, tokens)

    @override
    def opening(self) -> Iterator[Part]:
        for part in self.parts():
            yield part._replace(payload=self._body[: len(self._body) // 2])

    @override
    def next_part(self) -> Part:
        return Part(Kind.CONTENT, 0.0, self._body[len(self._body) // 2 :])

    @override
    def steps(self) -> Iterator[Step]:
        for part in self.parts():
            answer = wire.whole(
                HTTPStatus.OK,
                self.content_type,
                self.generation.request_id,
                part.payload,
            )
            yield Write(part.due, answer, part.tokens)
        yield Ending.KEEP_ALIVE

    @cached_property
    def _body(self) -> bytes:
        asked = self.generation
        choice = self._message if asked.chat else self._text
        body: dict[str, object] = {
            "id": asked.id,
            "object": "chat.completion" if asked.chat else "text_completion",
            "created": asked.created,
            "model": asked.model,
            "choices": [choice(index) for index in range(asked.choices)],
            "service_tier": None,
            "system_fingerprint": _FINGERPRINT,
        }
        if asked.usage is not Usage.NOWHERE:
            body["usage"] = self._usage()
        if asked.chat:
            body |= dict.fromkeys((
                "prompt_logprobs",
                "prompt_token_ids",
                "prompt_text",
            ))
        body |= dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))
        return msgspec.json.encode(body)

    def _usage(self) -> dict[str, object]:
        cached = {
            "cached_tokens": 0,
            "created_cache_tokens": 0 if self.generation.chat else None,
            "multimodal_tokens": None,
        }
        details = {"prompt_tokens_details": cached, "completion_tokens_details": None}
        return self.final_usage() | details

    def _message(self, index: int) -> dict[str, object]:
        message = {
            "role": "assistant",
            "content": self.passage(index, 0, self.tokens),
            **dict.fromkeys((
                "refusal",
                "annotations",
                "audio",
                "function_call",
                "reasoning",
            )),
        }
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": self.finish,
            "stop_reason": None,
            "token_ids": None,
            "routed_experts": None,
        }

    def _text(self, index: int) -> dict[str, object]:
        return {
            "index": index,
            "text": self.passage(index, 0, self.tokens),
            "logprobs": None,
            "finish_reason": self.finish,
            **dict.fromkeys((
                "stop_reason",
                "token_ids",
                "prompt_logprobs",
                "prompt_token_ids",
                "routed_experts",
            )),
        }


def answer_to(generation: Generation, settings: SimulatorSettings) -> Answer:
    """The answer of a simulated model with these settings."""
    cap = generation.cap
    capped = cap is not None and cap <= settings.tokens
    kind = StreamedAnswer if generation.stream else JsonAnswer
    return kind(
        generation,
        settings,
        tokens=cap if cap is not None and capped else settings.tokens,
        finish="length" if capped else "stop",
    )
