"""The ``x-ratelimit-*`` headers, of a grant or a refusal."""

from collections.abc import Iterator, Mapping

from gateway.admission.ledger import Grant, Rate, Refused

_HOUR = 3600
_MINUTE = 60


def rate_headers(rates: Grant | Refused) -> Mapping[str, str]:
    """Limit, remaining and reset of each limit the key has."""
    return dict([
        *_headers("requests", rates.requests),
        *_headers("tokens", rates.tokens),
    ])


def go_duration(seconds: float) -> str:
    """A duration as Go writes it, to the millisecond above: ``12ms``, ``6m0s``.

    Args:
        seconds: Not negative.
    """
    milliseconds = -int(-seconds * 1000 // 1)
    whole, rest = divmod(milliseconds, 1000)
    if whole == 0:
        return f"{rest}ms" if rest else "0s"
    hours, left = divmod(whole, _HOUR)
    minutes, left = divmod(left, _MINUTE)
    fraction = f".{rest:03d}".rstrip("0") if rest else ""
    text = f"{left}{fraction}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _headers(name: str, rate: Rate | None) -> Iterator[tuple[str, str]]:
    if rate is not None:
        yield f"x-ratelimit-limit-{name}", str(rate.limit)
        yield f"x-ratelimit-remaining-{name}", str(rate.remaining)
        yield f"x-ratelimit-reset-{name}", go_duration(rate.reset_seconds)
