import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.bearer import bearer

type Headers = list[tuple[bytes, bytes]]

AUTHORIZATION = b"authorization"
NAMES = st.sampled_from([AUTHORIZATION, b"x-api-key", b"api-key", b"accept"])


@pytest.mark.parametrize(
    "headers",
    [
        [(AUTHORIZATION, b"Bearer k")],
        [(AUTHORIZATION, b"bearer k")],
        [(AUTHORIZATION, b"BEARER   k \t")],
        [(b"x-api-key", b"k")],
        [(b"api-key", b" k ")],
        [(b"accept", b"*/*"), (b"api-key", b"k"), (b"cookie", b"a=b")],
        [(AUTHORIZATION, b"Bearer k"), (b"x-api-key", b"k"), (b"api-key", b"k")],
        [(AUTHORIZATION, b"Basic dTpw"), (b"x-api-key", b"k")],
        [(AUTHORIZATION, b"Bearer "), (b"x-api-key", b"k"), (b"api-key", b"")],
    ],
)
def test_bearer_is_the_credential_when_one_is_offered(headers: Headers) -> None:
    assert bearer(headers) == "k"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"accept", b"Bearer k")],
        [(AUTHORIZATION, b"")],
        [(AUTHORIZATION, b"k")],
        [(AUTHORIZATION, b"Bearer")],
        [(AUTHORIZATION, b"Bearer ")],
        [(AUTHORIZATION, b"Bearerk")],
        [(AUTHORIZATION, b"Basic dTpw")],
        [(b"x-api-key", b" ")],
        [(b"x-api-key", "k\u00e9".encode())],
        [(b"x-api-key", b"\xff")],
    ],
)
def test_bearer_is_none_when_nothing_usable_is_offered(headers: Headers) -> None:
    assert bearer(headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        [(AUTHORIZATION, b"Bearer a"), (AUTHORIZATION, b"Bearer b")],
        [(AUTHORIZATION, b"Bearer a"), (b"x-api-key", b"b")],
        [(b"x-api-key", b"a"), (b"api-key", b"b")],
        [(b"x-api-key", b"a"), (b"api-key", b"\xff")],
    ],
)
def test_bearer_is_none_when_credentials_differ(headers: Headers) -> None:
    assert bearer(headers) is None
    assert bearer(reversed(headers)) is None


@given(st.lists(st.tuples(NAMES, st.binary() | st.just(b"Bearer x"))))
def test_bearer_is_ascii_without_outer_blanks_whatever_is_sent(
    headers: Headers,
) -> None:
    credential = bearer(headers)
    if credential is not None:
        assert credential.isascii()
        assert credential == credential.strip(" \t")
        assert any(credential.encode() in value for _, value in headers)
