"""What a key looks like: ``sk-gw-<12 public>-<43 secret><6 checksum>``.

The public part tells keys apart for people, the secret part carries 256 bits, and the
checksum (CRC-32 of all that precedes it) lets a mistyped or made-up key be refused
before anything is hashed or looked up. CRC-32 finds every change of a single character.
"""

import hashlib
import hmac
import re
import secrets
import string
import zlib

_PUBLIC = string.ascii_lowercase + string.digits
_BASE62 = string.digits + string.ascii_letters
_SECRET_LENGTH = 43  # 62 ** 43 > 2 ** 256
_CHECKSUM_LENGTH = 6  # 62 ** 6 > 2 ** 32
_WELL_FORMED = re.compile(r"sk-gw-[a-z0-9]{12}-[A-Za-z0-9]{49}")


def new_secret() -> str:
    """A secret nobody has seen."""
    public = "".join(secrets.choice(_PUBLIC) for _ in range(12))
    private = "".join(secrets.choice(_BASE62) for _ in range(_SECRET_LENGTH))
    unchecked = f"sk-gw-{public}-{private}"
    return unchecked + _checksum(unchecked)


def is_well_formed(text: str) -> bool:
    """Whether the text has a secret's shape and its checksum is right."""
    if _WELL_FORMED.fullmatch(text) is None:
        return False
    return _checksum(text[:-_CHECKSUM_LENGTH]) == text[-_CHECKSUM_LENGTH:]


def digest(secret: str, pepper: str) -> str:
    """What is stored of a secret: ``hmac-sha256:`` and 64 hex digits.

    Args:
        secret: The whole of it.
        pepper: As the environment holds it, bytes that are not UTF-8 included.
    """
    key = pepper.encode(errors="surrogateescape")
    return "hmac-sha256:" + hmac.digest(key, secret.encode(), hashlib.sha256).hex()


def _checksum(text: str) -> str:
    number = zlib.crc32(text.encode())
    digits = []
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_BASE62))
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))
