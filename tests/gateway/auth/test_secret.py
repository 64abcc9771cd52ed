import hashlib
import hmac
import re
import string

from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.secret import digest, is_well_formed, new_secret

SECRET = new_secret()
KNOWN = "sk-gw-abc123def456-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg3jlUDz"
POSITIONS = st.integers(0, len(SECRET) - 1)


def test_new_secret_is_well_formed_and_never_the_same() -> None:
    made = {new_secret() for _ in range(200)}
    assert len(made) == 200
    assert all(is_well_formed(secret) for secret in made)
    assert all(
        re.fullmatch("sk-gw-[a-z0-9]{12}-[A-Za-z0-9]{43}[A-Za-z0-9]{6}", secret)
        for secret in made
    )


@given(position=POSITIONS, other=st.sampled_from(string.printable) | st.characters())
def test_secret_is_malformed_when_one_character_is_another(
    position: int, other: str
) -> None:
    mistyped = SECRET[:position] + other + SECRET[position + 1 :]
    assert is_well_formed(mistyped) == (mistyped == SECRET)


@given(position=POSITIONS)
def test_secret_is_malformed_when_a_character_is_missing_or_doubled(
    position: int,
) -> None:
    assert not is_well_formed(SECRET[:position] + SECRET[position + 1 :])
    assert not is_well_formed(SECRET[:position] + SECRET[position : position + 1] * 2)


@given(st.text())
def test_secret_is_malformed_when_it_is_any_text(text: str) -> None:
    assert not is_well_formed(text)
    assert not is_well_formed(SECRET + text[:1] + "\n")


def test_secret_keeps_its_form_from_one_version_to_the_next() -> None:
    assert is_well_formed(KNOWN)
    assert not is_well_formed(KNOWN.upper())


def test_digest_is_the_hmac_of_the_whole_secret() -> None:
    expected = hmac.new(b"pepper", SECRET.encode(), hashlib.sha256).hexdigest()
    assert digest(SECRET, "pepper") == f"hmac-sha256:{expected}"
    assert digest(SECRET, "other") != digest(SECRET, "pepper")


def test_digest_takes_a_pepper_that_is_not_utf8() -> None:
    expected = hmac.new(b"p\xff", b"x", hashlib.sha256).hexdigest()
    assert digest("x", "p\udcff") == f"hmac-sha256:{expected}"
