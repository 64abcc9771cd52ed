import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.keyring import Keyring, KeysError, LimitsEntry, parse_keys
from gateway.auth.principal import Limits, Principal
from gateway.auth.secret import digest, new_secret

PEPPER = "pepper"
SECRET = new_secret()
CANARY = "a canary's secret"  # with blanks: no field takes it


def entry(number: int = 0, **members: object) -> dict[str, Any]:
    return {"id": f"team-{number}", "digest": f"hmac-sha256:{number:064x}", **members}


def mistakes_of(*entries: object) -> tuple[str, ...]:
    return mistakes_in(json.dumps({"keys": entries}))


def mistakes_in(text: str) -> tuple[str, ...]:
    with pytest.raises(KeysError) as caught:
        parse_keys(text)
    return caught.value.mistakes


def principal(name: str, secret: str) -> Principal:
    return Principal(name, digest(secret, PEPPER))


def test_parse_keys_reads_every_field() -> None:
    limits = {
        "requests_per_minute": 600,
        "tokens_per_minute": 200_000,
        "concurrency": 50,
        "tokens_per_day": 5_000_000,
        "tokens_per_month": None,
        "max_output_tokens": 8192,
    }
    first = entry(0, models=["chat-*", "embed"], limits=limits)
    document = json.dumps({"keys": [first, entry(1)]})
    assert parse_keys(document) == (
        Principal(
            "team-0",
            f"hmac-sha256:{0:064x}",
            ("chat-*", "embed"),
            Limits(600, 200_000, 50, 5_000_000, None, 8192),
        ),
        Principal("team-1", f"hmac-sha256:{1:064x}", ("*",), Limits()),
    )


def test_limits_entry_has_the_fields_of_limits() -> None:
    assert [*LimitsEntry.model_fields] == [field.name for field in fields(Limits)]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("id", ""),
        ("id", "-a"),
        ("id", "a" * 65),
        ("id", "two words"),
        ("id", "line\n"),
        ("id", 1),
        ("digest", "0" * 64),
        ("digest", "hmac-sha256:" + "G" * 64),
        ("digest", "hmac-sha256:" + "0" * 63),
        ("models", "*"),
        ("models.0", "chat-?"),
        ("models.0", ""),
        ("limits", []),
        ("limits.requests_per_minute", 0),
        ("limits.tokens_per_minute", -1),
        ("limits.concurrency", 1.0),
        ("limits.tokens_per_day", "5000"),
        ("limits.tokens_per_day", -1),
        ("limits.tokens_per_month", True),
        ("limits.tokens_per_month", 2**53),
        ("limits.max_output_tokens", 0),
    ],
)
def test_parse_keys_names_the_field_when_a_value_is_wrong(
    path: str, value: object
) -> None:
    wrong = entry(2, models=["*"], limits={})
    node: Any = wrong
    *outer, last = path.split(".")
    for step in outer:
        node = node[step]
    node[0 if isinstance(node, list) else last] = value
    (mistake,) = mistakes_of(entry(0), entry(1), wrong)
    assert mistake.startswith(f"keys.2.{path}: ")


@given(
    place=st.sampled_from(["", "keys.1.", "keys.1.limits."]),
    name=st.from_regex("[a-z_]{1,12}", fullmatch=True),
)
def test_parse_keys_names_any_unknown_field(place: str, name: str) -> None:
    document: dict[str, Any] = {"keys": [entry(0), entry(1, limits={})]}
    inner = {
        "": document,
        "keys.1.": document["keys"][1],
        "keys.1.limits.": document["keys"][1]["limits"],
    }
    inner[place][f"x_{name}"] = 1
    assert mistakes_in(json.dumps(document)) == (f"{place}x_{name}: unknown field",)


def test_parse_keys_names_every_mistake_at_once() -> None:
    mistakes = mistakes_of(
        entry(0, limits={"concurrency": 0}),
        entry(0, secret=SECRET),
        {"id": "team-2"},
        "team-3",
    )
    assert [mistake.partition(": ")[0] for mistake in mistakes] == [
        "keys.0.limits.concurrency",
        "keys.1.secret",
        "keys.2.digest",
        "keys.3",
        "keys.1.id",
        "keys.1.digest",
    ]


def test_parse_keys_names_members_that_are_given_twice() -> None:
    text = '{"keys": [{"id": "a", "id": "b", "digest": "hmac-sha256:%s"}]}' % ("0" * 64)
    assert mistakes_in(text) == ("keys.0.id: given twice",)
    assert "keys: given twice" in mistakes_in('{"keys": [], "keys": []}')


@pytest.mark.parametrize("member", ["id", "digest", "models", "limits"])
@pytest.mark.parametrize("value", [CANARY, [CANARY], {"requests_per_minute": CANARY}])
def test_parse_keys_never_quotes_a_value(member: str, value: object) -> None:
    wrong = {**entry(), member: value}
    assert CANARY not in "".join(mistakes_of(wrong))


@pytest.mark.parametrize(
    "text",
    ["", "{", f'{{"keys": {CANARY}}}', "[" * 100_000, "1" * 5000, "null", "[]", "{}"],
)
def test_parse_keys_says_so_when_the_text_is_no_keys_document(text: str) -> None:
    (mistake,) = mistakes_in(text)
    assert mistake.startswith("keys: ")
    assert CANARY not in mistake


@pytest.mark.parametrize("depth", [10, 900, 1100, 5000, 50_000])
def test_parse_keys_refuses_nesting_however_deep(depth: int) -> None:
    assert mistakes_in('{"keys": ' + "[" * depth + "]" * depth + "}")
    assert mistakes_in('{"keys": ' + '{"a":' * depth + "1" + "}" * depth + "}")


@given(st.recursive(st.none() | st.text() | st.integers(), st.lists) | st.text())
def test_parse_keys_only_ever_raises_keys_error(value: object) -> None:
    for text in (value if isinstance(value, str) else "", json.dumps({"keys": value})):
        try:
            assert parse_keys(text) == ()
        except KeysError as error:
            assert error.mistakes  # noqa: PT017 - an empty list is a document


def test_keyring_finds_the_principal_of_a_secret() -> None:
    secrets = [new_secret() for _ in range(3)]
    principals = [principal(f"team-{n}", secret) for n, secret in enumerate(secrets)]
    keyring = Keyring(principals, PEPPER)
    assert [keyring.find(secret) for secret in secrets] == principals
    assert keyring.principals == tuple(principals)
    assert keyring.by_id("team-1") == principals[1]
    assert keyring.by_id("team-9") is None


@pytest.mark.parametrize(
    "secret", [None, "", "sk-gw-", new_secret(), SECRET[:-1] + "."]
)
def test_keyring_finds_nobody_when_the_secret_is_not_known(secret: str | None) -> None:
    assert Keyring([principal("team", SECRET)], PEPPER).find(secret) is None


def test_keyring_finds_nobody_when_the_pepper_is_another() -> None:
    assert Keyring([principal("team", SECRET)], "other").find(SECRET) is None


def test_keyring_knows_only_the_new_principals_when_they_are_replaced() -> None:
    other = new_secret()
    keyring = Keyring([principal("old", SECRET)], PEPPER)
    keyring.replace(iter([principal("new", other)]))
    assert keyring.find(SECRET) is None
    assert keyring.by_id("old") is None
    assert keyring.find(other) == principal("new", other)


def test_keyring_does_not_show_its_pepper() -> None:
    keyring = Keyring([principal("team", SECRET)], CANARY)
    assert CANARY not in f"{keyring!r} {keyring}"
