"""A provider's refusal, from its error answer to a fault the caller may see."""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus

from gateway.errors import UpstreamBusy, UpstreamLimited, UpstreamUnreachable
from gateway.providers.provider import Provider
from streaming.dialects.reading import ErrorReport, read_error
from streaming.errors import UpstreamFault
from streaming.stages.verdict import reported

MESSAGE_BYTES = 512
ERROR_BODY_BYTES = 65_536
"""No more of an error answer is read."""

_MARKUP = re.compile(r"<[^<>]*+>")  # from the last `<`: tried once for each
_SPACE = re.compile(r"\s+")
_WHOLE_SECONDS = re.compile(r"[0-9]{1,9}")
_UNAVAILABLE = (503, 529)


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamFault:
    """What an error status means for the caller.

    Args:
        status: 400 to 599.
        headers: Of the provider's answer.
        body: Its first bytes; a JSON envelope, ``{"detail": …}``, a string or text.
    """
    fault = reported(_report(body), status)
    seconds = _seconds(headers)
    if status == HTTPStatus.BAD_GATEWAY:
        return UpstreamUnreachable(fault.message)
    if status in _UNAVAILABLE:
        return UpstreamBusy(fault.message, retry_after_seconds=seconds)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return UpstreamLimited(
            fault.message,
            status=status,
            code=fault.code,
            retry_after_seconds=seconds,
        )
    fault.retry_after_seconds = seconds
    return fault


def redact(fault: UpstreamFault, provider: Provider) -> None:
    """Make what the provider said fit for the caller: short, no markup, no secret."""
    fault.message = _fit(fault.message, provider) or "The provider reported an error."
    fault.code = _fit(fault.code, provider)
    fault.param = None if fault.param is None else _fit(fault.param, provider)


def _fit(said: str, provider: Provider) -> str:
    text = _SPACE.sub(" ", _MARKUP.sub(" ", provider.redact(said))).strip()
    return text.encode("utf-8", "replace")[:MESSAGE_BYTES].decode("utf-8", "ignore")


def _report(body: bytes) -> ErrorReport:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ErrorReport(body.decode("utf-8", "replace"))
    if not isinstance(document, dict):
        return read_error(document)
    for member in ("error", "detail"):
        if document.get(member) is not None:
            return read_error(document[member])
    return read_error(document)


def _seconds(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after", "")
    return float(value) if _WHOLE_SECONDS.fullmatch(value) else None
