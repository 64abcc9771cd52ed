import pytest

from gateway.auth.principal import Principal


@pytest.mark.parametrize(
    ("model", "allowed"),
    [
        ("chat-small", True),
        ("chat-", True),
        ("org/embed", True),
        ("Chat-small", False),
        ("org/embed-2", False),
        ("a-chat-small", False),
    ],
)
def test_principal_may_use_what_a_glob_matches(model: str, *, allowed: bool) -> None:
    principal = Principal("a", "hmac-sha256:", models=("chat-*", "org/embed"))
    assert principal.may_use(model) == allowed


def test_principal_may_use_nothing_when_it_has_no_models() -> None:
    assert not Principal("a", "hmac-sha256:", models=()).may_use("chat-small")
