"""What one simulated answer is like: its settings, its fault, and their short form.

A model's name may say it for one request, so that no test needs a second server::

    name    = "sim" *( "-" letter number ) [ "-x" fault ]

    r  tokens per second and choice; 0: as fast as they are read
    t  tokens per choice, if the request names no smaller cap
    f  milliseconds until the first token
    c  tokens per event; 0: one, two and three in turn
    a  tokens per choice before a fault in mid-stream
    m  megabytes (10^6 bytes) of the event of ``big-event``, of ``gzip-bomb`` inflated
    d  milliseconds between two bytes of ``slow-drip``

``sim-r200-t128-f50`` makes 128 tokens, 200 a second, the first after 50 ms;
``sim-r0-xtruncate`` ends its stream too early. Any other name has the defaults; only a
name that asks for a fault nobody knows is refused, lest a misspelt test pass.
"""

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final


class Fault(StrEnum):
    """What can go wrong with an answer; ``faults`` says how each is done."""

    RESET_BEFORE_HEADERS = "reset-before-headers"
    HANG_BEFORE_HEADERS = "hang-before-headers"
    NOT_HTTP = "not-http"
    HANG_BEFORE_FIRST = "hang-before-first"
    RESET_BEFORE_FIRST = "reset-before-first"
    EMPTY = "empty"
    HANG_MID_STREAM = "hang-mid-stream"
    RESET_MID_STREAM = "reset-mid-stream"
    TRUNCATE = "truncate"
    HALF_EVENT = "half-event"
    BROKEN_CHUNK = "broken-chunk"
    CLOSE_ON_REUSE = "close-on-reuse"
    ERROR_FIRST = "error-first"
    ERROR_MID_STREAM = "error-mid-stream"
    ERROR_STRING = "error-string"
    ABORT = "abort"
    FINISH_ERROR = "finish-error"
    STATUS_400_DETAIL = "status-400-detail"
    STATUS_401 = "status-401"
    STATUS_429 = "status-429"
    STATUS_500_PLAIN = "status-500-plain"
    STATUS_503 = "status-503"
    STATUS_529 = "status-529"
    REDIRECT_307 = "redirect-307"
    HTML_200 = "html-200"
    JSON_ERROR_200 = "json-error-200"
    HALF_JSON_200 = "half-json-200"
    NO_CONTENT_TYPE = "no-content-type"
    GZIP = "gzip"
    GZIP_BOMB = "gzip-bomb"
    GARBAGE = "garbage"
    BIG_EVENT = "big-event"
    NO_DONE = "no-done"
    DONE_THEN_OPEN = "done-then-open"
    FINISH_THEN_SILENCE = "finish-then-silence"
    FINISH_THEN_RESET = "finish-then-reset"
    USAGE_ON_FINISH = "usage-on-finish"
    USAGE_AT_CHOICE = "usage-at-choice"
    NO_USAGE = "no-usage"
    SLOW_DRIP = "slow-drip"
    CRLF = "crlf"
    CR = "cr"
    BOM = "bom"
    COMMENTS = "comments"
    FIELDS = "fields"
    EMPTY_EVENTS = "empty-events"
    NULL_FIRST = "null-first"
    NO_BLANK_LINE = "no-blank-line"
    NO_FINISH = "no-finish"
    DONE_TWICE = "done-twice"
    AFTER_DONE = "after-done"


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """The defaults of a simulated provider, or what one of its answers is like.

    Attributes:
        model: What ``/v1/models`` lists, and the name where a request gives none.
        rate: Tokens per second and choice; 0 is as fast as they are read.
        tokens: Tokens per choice, where the request names no smaller cap.
        first_token_ms: From the request's last byte to the first token.
        chunk_tokens: Tokens per event; 0 is one, two and three in turn.
        fault: What goes wrong, if anything does.
        fault_after_tokens: Tokens per choice before a fault in mid-stream.
        event_megabytes: Size of the event of ``big-event``, and of what ``gzip-bomb``
            inflates to, in 10^6 bytes.
        drip_ms: Between two bytes of ``slow-drip``.
        keep_alive_seconds: An idle connection is closed after this long; vLLM's value.
    """

    model: str = "sim"
    rate: float = 50.0
    tokens: int = 128
    first_token_ms: float = 100.0
    chunk_tokens: int = 0
    fault: Fault | None = None
    fault_after_tokens: int = 5
    event_megabytes: int = 16
    drip_ms: float = 1.0
    keep_alive_seconds: float = 5.0


class UnknownFault(ValueError):
    """A model's name asks for a fault that is not in ``Fault``."""


_NAME: Final = re.compile(r"sim((?:-[rtfcamd]\d+(?:\.\d+)?)*)(?:-x(.+))?")


def scenario_for(model: str, defaults: SimulatorSettings) -> SimulatorSettings:
    """The defaults, changed by what the model's name says.

    Raises:
        UnknownFault: The name ends in ``-x`` and something that is no fault.
    """
    match = _NAME.fullmatch(model)
    if match is None:
        return defaults
    said = {item[0]: float(item[1:]) for item in match[1].split("-")[1:]}
    return replace(
        defaults,
        rate=said.get("r", defaults.rate),
        tokens=int(said.get("t", defaults.tokens)),
        first_token_ms=said.get("f", defaults.first_token_ms),
        chunk_tokens=int(said.get("c", defaults.chunk_tokens)),
        fault_after_tokens=int(said.get("a", defaults.fault_after_tokens)),
        event_megabytes=int(said.get("m", defaults.event_megabytes)),
        drip_ms=said.get("d", defaults.drip_ms),
        fault=_fault(match[2]) if match[2] else defaults.fault,
    )


def _fault(name: str) -> Fault:
    try:
        return Fault(name)
    except ValueError as error:
        raise UnknownFault(name) from error
