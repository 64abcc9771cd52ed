"""What provider and load agree on: names that say the pace, chunks that say when.

The chunks are vLLM's (``tests/transcripts/vllm``) byte by byte, but for the text: it is
``"17@123456789 "``, the chunk's number in its stream and when it was sent, in
nanoseconds of ``CLOCK_MONOTONIC``, which all processes of a machine share.
"""

import re
from dataclasses import dataclass
from typing import Self

CONTENT = re.compile(rb'"content": ?"(\d+)@(\d+) "')
"""The text of one chunk; JSON may have been written anew on its way."""
TOKEN = re.compile(rb"(\d+)@(\d+) ")
DONE = b"data: [DONE]\n\n"

_CHUNK = (
    'data: {"id":"chatcmpl-9bd618b524c75aa9","object":"chat.completion.chunk",'
    '"created":1795390214,"model":"MODEL","choices":[{"index":0,"delta":DELTA,'
    '"logprobs":null,"finish_reason":FINISH,"token_ids":null}]USAGE}\n\n'
)
_RUNNING_USAGE = (
    ',"usage":{"prompt_tokens":19,"total_tokens":%d,"completion_tokens":%d,'
    '"completion_tokens_details":null}'
)
_USAGE = (
    'data: {"id":"chatcmpl-9bd618b524c75aa9","object":"chat.completion.chunk",'
    '"created":1795390214,"model":"MODEL","choices":[]USAGE}\n\n'
)
_ANSWER = (
    '{"id":"chatcmpl-ad0f6cc445e5ce95","object":"chat.completion","created":1795390214,'
    '"model":"MODEL","choices":[{"index":0,"message":{"role":"assistant","content":'
    '"TEXT","refusal":null,"annotations":null,"audio":null,"function_call":null,'
    '"reasoning":null},"logprobs":null,"finish_reason":"length","stop_reason":null,'
    '"token_ids":null}],"service_tier":null,"usage":{"prompt_tokens":19,'
    '"total_tokens":%d,"completion_tokens":%d,"completion_tokens_details":null}}'
)


@dataclass(frozen=True, slots=True)
class Pace:
    """How the provider answers, as the model's name says it.

    Attributes:
        chunks: With text, of a stream; tokens, of an answer that is none. At least 1.
        gap_ms: Between two chunks; 0: as fast as they are taken.
    """

    chunks: int
    gap_ms: int = 0

    @property
    def model(self) -> str:
        return f"bench-{self.chunks}-{self.gap_ms}"

    @classmethod
    def of(cls, model: str) -> Self:
        """Raises ValueError for a name that is none of ours."""
        _, chunks, gap_ms = model.rsplit("-", 2)
        return cls(int(chunks), int(gap_ms))


IDLE = Pace(2, 3_600_000)
"""One chunk, then an hour of silence."""
FIFTY_MB = Pace(210_000)
"""More than 50 MB of chunks; 75 where running usage is asked for."""


class Events:
    """Renders the events of one stream.

    Args:
        pace: Of the stream.
        usage: Whether usage was asked for.
        running: Whether in every chunk.
    """

    def __init__(self, pace: Pace, *, usage: bool, running: bool) -> None:
        self._last = pace.chunks - 1
        self._usage = usage
        self._running = usage and running
        chunk = _CHUNK.replace("MODEL", pace.model).replace(
            "USAGE", _RUNNING_USAGE if self._running else ""
        )
        text = chunk.replace("DELTA", '{"content":"%d@%d "}')
        self._role = chunk.replace("DELTA", '{"role":"assistant","content":""}')
        self._text = text.replace("FINISH", "null").encode()
        self._final = text.replace("FINISH", '"length"').encode()
        self._total = _USAGE.replace("MODEL", pace.model).replace(
            "USAGE", _RUNNING_USAGE
        )

    def role(self) -> bytes:
        """The event before the first text."""
        role = self._role.replace("FINISH", "null")
        return (role % (19, 0) if self._running else role).encode()

    def text(self, number: int, now_ns: int) -> bytes:
        """The event with one token."""
        template = self._text if number < self._last else self._final
        if self._running:
            return template % (number, now_ns, 20 + number, 1 + number)
        return template % (number, now_ns)

    def end(self) -> list[bytes]:
        """The events after the last text."""
        tokens = self._last + 1
        total = (self._total % (19 + tokens, tokens)).encode()
        return [total, DONE] if self._usage else [DONE]


def whole_answer(pace: Pace, now_ns: int) -> bytes:
    """The body of an answer that is no stream."""
    text = "".join(f"{number}@{now_ns} " for number in range(pace.chunks))
    template = _ANSWER.replace("MODEL", pace.model)
    return (template % (19 + pace.chunks, pace.chunks)).replace("TEXT", text).encode()
