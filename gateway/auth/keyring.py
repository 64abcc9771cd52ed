"""The keys document, and the keys by their digests.

The document is ``{"keys": [{"id", "digest", "models", "limits"}]}``. Only digests are
in it: whoever reads it cannot call the gateway.
"""

import hmac
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field

from gateway.auth.principal import Limits, Principal
from gateway.auth.secret import digest, is_well_formed
from gateway.settings.document import (
    DocumentError,
    Shape,
    entries,
    read_json,
    repeated_values,
    validate,
)
from gateway.settings.schema import Id

_EXACT = 2**53 - 1  # the store's scripts count in doubles
type Amount = Annotated[int, Field(ge=0, le=_EXACT)]
type Positive = Annotated[int, Field(ge=1, le=_EXACT)]
type Digest = Annotated[str, Field(pattern=r"^hmac-sha256:[0-9a-f]{64}$")]
# `*` is the only wildcard; the other characters of a glob are kept out.
type ModelGlob = Annotated[str, Field(pattern=r"^[!-~&&[^?\[\]]]{1,256}$")]


class KeysError(DocumentError):
    """The keys document cannot be used; ``mistakes`` has all of them."""


class LimitsEntry(Shape):
    """``Limits`` as the document has them; null and absent are unlimited."""

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    concurrency: Positive | None = None
    tokens_per_day: Amount | None = None
    tokens_per_month: Amount | None = None
    max_output_tokens: Positive | None = None


class KeyEntry(Shape):
    """One key of the document."""

    id: Id
    digest: Digest
    models: Annotated[tuple[ModelGlob, ...], Field(strict=False)] = ("*",)
    limits: LimitsEntry = LimitsEntry()

    def principal(self) -> Principal:
        """Who pays with this key."""
        limits = Limits(**self.limits.model_dump())
        return Principal(self.id, self.digest, self.models, limits)


def _give_way(entry: KeyEntry) -> KeyEntry:
    """Let other threads run: without Python in between, 10,000 keys take 80 ms."""
    return entry


class KeysDocument(Shape):
    """The whole document."""

    keys: Annotated[
        tuple[Annotated[KeyEntry, AfterValidator(_give_way)], ...], Field(strict=False)
    ]


def parse_keys(text: str) -> tuple[Principal, ...]:
    """The principals of a keys document, in its order.

    Raises:
        KeysError: The text is not JSON, or has mistakes in it.
    """
    try:
        document = read_json(text)
    except DocumentError as error:
        raise KeysError(f"keys: {mistake}" for mistake in error.mistakes) from None
    shaped, mistakes = validate(KeysDocument, document)
    listed = [*entries(document, "keys")]
    mistakes += repeated_values(listed, "id")
    mistakes += repeated_values(listed, "digest")
    if shaped is None or mistakes:
        raise KeysError(mistakes)
    return tuple(entry.principal() for entry in shaped.keys)


class Keyring:
    """Finds who pays by the secret that is presented.

    Args:
        principals: With distinct ids and digests.
        pepper: The HMAC key their digests were made with.
    """

    def __init__(self, principals: Iterable[Principal], pepper: str) -> None:
        self._pepper = pepper
        self.replace(principals)

    def replace(self, principals: Iterable[Principal]) -> None:
        """Know these principals and no others from now on."""
        self._by_id = {principal.id: principal for principal in principals}
        self._by_digest = {p.digest: p for p in self._by_id.values()}

    @property
    def principals(self) -> tuple[Principal, ...]:
        """All of them, in the order given."""
        return tuple(self._by_id.values())

    def by_id(self, principal: str) -> Principal | None:
        """The principal of that id."""
        return self._by_id.get(principal)

    def find(self, secret: str | None) -> Principal | None:
        """Whose secret this is; None for one that is missing, malformed or unknown.

        A malformed secret is not even hashed. A well-formed one costs the same whether
        it is known or not, so that time tells nothing.
        """
        if secret is None or not is_well_formed(secret):
            return None
        presented = digest(secret, self._pepper)
        found = self._by_digest.get(presented)
        stored = _DECOY if found is None else found.digest
        return found if hmac.compare_digest(stored, presented) else None


_DECOY = "hmac-sha256:" + "0" * 64
