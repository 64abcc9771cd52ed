"""The credential of a request, from its raw headers."""

from collections.abc import Iterable

_KEY_HEADERS = frozenset({b"authorization", b"x-api-key", b"api-key"})


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The one credential that is offered.

    It comes as ``Authorization: Bearer`` (the scheme's case does not count; another
    scheme offers nothing), as ``x-api-key`` or as ``api-key``. The same credential may
    be offered several times. Two that differ are refused: taking either would let a
    proxy and this gateway disagree on who is asking.

    Args:
        headers: As in an ASGI scope, names in lower case.

    Returns:
        None when there is none, when there are several, or when it is not ASCII.
    """
    offered = {_credential(*header) for header in headers if header[0] in _KEY_HEADERS}
    offered.discard(b"")
    if len(offered) != 1:
        return None
    credential = offered.pop()
    return credential.decode("ascii") if credential.isascii() else None


def _credential(name: bytes, value: bytes) -> bytes:
    value = value.strip(b" \t")
    if name != b"authorization":
        return value
    scheme, _, credential = value.partition(b" ")
    return credential.lstrip(b" ") if scheme.lower() == b"bearer" else b""
