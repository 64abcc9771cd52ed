"""Who pays, and what they may do."""

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Limits:
    """What one key may use; None is unlimited.

    Attributes:
        requests_per_minute: Requests; burst up to the whole limit.
        tokens_per_minute: Prompt and completion tokens; burst up to the whole limit.
        concurrency: Exchanges at a time, over the whole fleet.
        tokens_per_day: Tokens in a UTC day.
        tokens_per_month: Tokens in a UTC calendar month.
        max_output_tokens: Largest cap a request may name, per choice.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who pays for an exchange: one key of the keys document.

    Attributes:
        id: ``[A-Za-z0-9][A-Za-z0-9._-]{0,63}``.
        digest: ``hmac-sha256:`` and 64 hex digits; never the secret.
        models: Exact names or ``*`` globs.
        limits: What it may use.
    """

    id: str
    digest: str
    models: tuple[str, ...] = ("*",)
    limits: Limits = Limits()

    def may_use(self, model: str) -> bool:
        """Whether a glob of this key matches the model's name (case counts)."""
        return any(fnmatchcase(model, glob) for glob in self.models)
