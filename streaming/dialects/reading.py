"""What any dialect reads out of a frame: the little that metering needs."""

from collections.abc import Hashable, Sequence
from typing import Annotated, Protocol, TypeIs

import msgspec

_MAX_TOKENS = 2**31
_STATUS_DIGITS = 3


type Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX_TOKENS)]


class TokenUsage(msgspec.Struct, frozen=True, gc=False):
    """Token counts as a provider reports them, cumulative; each 0 to 2**31."""

    prompt_tokens: Count
    completion_tokens: Count


class ErrorReport(msgspec.Struct, frozen=True):
    """A provider's error object, as far as it can be read.

    Attributes:
        message: Its text, unredacted.
        status: An HTTP status, where ``code`` is one (a number, or a number as text).
        code: The provider's own code, where it is a word.
        param: The request field it names.
    """

    message: str
    status: int | None = None
    code: str | None = None
    param: str | None = None


class Reading(msgspec.Struct, gc=False):
    """What one event says.

    Attributes:
        texts: Generated text in order; the key tells the runs of text apart (choice,
            and channel or tool call within it).
        finishes: (choice, finish reason) of every choice that ends here.
        choices: Indexes of the choices this event speaks of.
        usage: Cumulative usage, if the event reports a sane one.
        has_usage: Whether there is a ``usage`` member at all, at any level read.
        error: An error the provider reports inside its answer.
        done: The event is the ``[DONE]`` mark.
    """

    texts: Sequence[tuple[Hashable, str]] = ()
    finishes: Sequence[tuple[int, str]] = ()
    choices: Sequence[int] = ()
    usage: TokenUsage | None = None
    has_usage: bool = False
    error: ErrorReport | None = None
    done: bool = False


NOTHING = Reading()
DONE = Reading(done=True)


class Dialect(Protocol):
    """How to read one wire format. Reading never fails: what is odd says nothing."""

    def read(self, data: bytes) -> Reading:
        """Read one event's payload."""
        ...

    def read_run(self, _data: bytes, _events: int, /) -> Reading | None:
        """Read a run of events as if it were one; None: each must be read by itself.

        That is so as soon as one of them brings more than text and running usage, and
        always where a dialect does not define this.

        Args:
            _data: Their payloads, with ``sse.JOINT`` between them.
            _events: How many they are, at least 2.
        """
        return None

    def read_answer(self, body: bytes) -> Reading | None:
        """Read a whole non-stream answer; None when it is not a JSON object."""
        ...


def read_usage(usage: object) -> TokenUsage | None:
    """A usage object as two sane numbers; None for anything else.

    A missing completion count is what the total leaves over (embeddings).
    """
    if not isinstance(usage, dict):
        return None
    prompt = usage.get("prompt_tokens")
    completion = usage.get("completion_tokens")
    total = usage.get("total_tokens")
    if completion is None and is_count(total) and is_count(prompt):
        completion = max(0, total - prompt)
    if not is_count(prompt) or not is_count(completion):
        return None
    return TokenUsage(prompt, completion)


def is_count(value: object) -> TypeIs[int]:
    """Whether a JSON value is a token count: an integer from 0 to 2**31."""
    return type(value) is int and 0 <= value <= _MAX_TOKENS


def read_error(error: object) -> ErrorReport:
    """A provider's error, be it an object, a bare string or something else."""
    if not isinstance(error, dict):
        return ErrorReport(error if isinstance(error, str) else "")
    message, code, param = (error.get(name) for name in ("message", "code", "param"))
    return ErrorReport(
        message=message if isinstance(message, str) else "",
        status=_status(code),
        code=code if isinstance(code, str) and not code.isdigit() else None,
        param=param if isinstance(param, str) else None,
    )


def _status(code: object) -> int | None:
    number = code
    if isinstance(code, str) and len(code) == _STATUS_DIGITS and code.isdecimal():
        number = int(code)
    if type(number) is int and 400 <= number <= 599:  # noqa: PLR2004 # HTTP errors
        return number
    return None
