import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.settings import (
    KeysSettings,
    RedisSettings,
    Settings,
    SettingsError,
    config_path,
    keys_document_text,
    load_settings,
    parse_settings,
    pepper,
    redis_url,
    secret,
    tokenizer_cache_dir,
    unset_variables,
)

EXAMPLE_FILE = Path(__file__).parents[2] / "docs" / "example-config.yaml"
EXAMPLE: dict[str, Any] = yaml.safe_load(EXAMPLE_FILE.read_text("utf-8"))
MINIMAL = """
providers:
  - {name: a, adapter: vllm, base_url: "http://127.0.0.1:8000/v1"}
models:
  - {name: m, candidates: [{provider: a, model: x}]}
"""
CANARY = "canary-5up3r-s3cr3t"

type Steps = tuple[str | int, ...]


def nodes(node: Any, *steps: str | int) -> Iterator[tuple[Steps, Any]]:
    """Every value of a document, mappings and lists included, with its path."""
    yield steps, node
    if isinstance(node, dict):
        for name, member in node.items():
            yield from nodes(member, *steps, name)
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from nodes(item, *steps, index)


def changed(steps: Steps, value: object) -> dict[str, Any]:
    """The example with one value replaced or added."""
    document = copy.deepcopy(EXAMPLE)
    node: Any = document
    for step in steps[:-1]:
        node = node[step]
    node[steps[-1]] = value
    return document


def mistakes_of(document: object) -> tuple[str, ...]:
    try:
        parse_settings(document)
    except SettingsError as error:
        return error.mistakes
    return ()


def mistakes_in(directory: Path, text: str | bytes) -> tuple[str, ...]:
    path = directory / "gateway.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    return caught.value.mistakes


MAPPINGS = [steps for steps, node in nodes(EXAMPLE) if isinstance(node, dict)]
LEAVES = [
    steps for steps, node in nodes(EXAMPLE) if steps and not isinstance(node, dict)
]
SECONDS = [
    ("server", "drain_seconds"),
    ("redis", "timeout_seconds"),
    ("streaming", "heartbeat_seconds"),
    ("streaming", "first_byte_seconds"),
    ("streaming", "idle_seconds"),
    ("streaming", "write_stall_seconds"),
    ("streaming", "total_seconds"),
    ("providers", 0, "connect_seconds"),
    ("routing", "breaker", "window_seconds"),
    ("routing", "breaker", "open_seconds"),
]


def test_load_settings_reads_the_example() -> None:
    settings = load_settings(EXAMPLE_FILE)
    assert [p.name for p in settings.providers] == ["vllm-a", "openai"]
    assert settings.models[0].candidates[1].model == "gpt-4o-mini"
    assert settings.keys.env == "GATEWAY_KEYS"


def test_load_settings_has_the_values_of_the_example_when_little_is_given(
    tmp_path: Path,
) -> None:
    file = tmp_path / "minimal.yaml"
    file.write_text(MINIMAL)
    given_little, example = load_settings(file), load_settings(EXAMPLE_FILE)
    sections = set(Settings.model_fields) - {"providers", "models"}
    assert given_little.model_dump(include=sections) == example.model_dump(
        include=sections
    )
    assert given_little.providers[0].max_concurrency == 256
    assert given_little.models[0].tokenizer == "o200k_base"


@given(
    steps=st.sampled_from(MAPPINGS),
    name=st.from_regex(r"[a-z_]{1,12}", fullmatch=True),
)
def test_parse_settings_names_any_unknown_field(steps: Steps, name: str) -> None:
    unknown = (*steps, f"x_{name}")
    path = ".".join(map(str, unknown))
    assert mistakes_of(changed(unknown, 1)) == (f"{path}: unknown field",)


@pytest.mark.parametrize("steps", LEAVES, ids=str)
@pytest.mark.parametrize("wrapped", ["{}", "http://user:{}@host/v1", "h://[{}]"])
def test_parse_settings_never_quotes_a_value_when_it_is_wrong(
    steps: Steps, wrapped: str
) -> None:
    mistakes = mistakes_of(changed(steps, wrapped.format(CANARY)))
    assert not any(CANARY in mistake for mistake in mistakes)


@pytest.mark.parametrize("steps", SECONDS, ids=str)
def test_parse_settings_takes_a_fraction_of_a_second(steps: Steps) -> None:
    node: Any = parse_settings(changed(steps, 0.25)).model_dump()
    for step in steps:
        node = node[step]
    assert node == 0.25


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("server.port", 65_536),
        ("server.port", "8080"),
        ("server.port", True),
        ("server.host", "two words"),
        ("server.drain_seconds", -0.1),
        ("server.max_body_bytes", 0),
        ("server.cors_origins", "https://a.example"),
        ("redis.url_env", "redis://localhost"),
        ("redis.timeout_seconds", 0),
        ("redis.cluster", "no"),
        ("keys", {}),
        ("keys", {"env": "A", "file": "b"}),
        ("keys.env", "not a name"),
        ("streaming.total_seconds", 86_401),
        ("streaming.idle_seconds", 0),
        ("streaming.idle_seconds", float("nan")),
        ("streaming.idle_seconds", float("inf")),
        ("streaming.buffer_bytes", 1.5),
        ("streaming", None),
        ("providers", []),
        ("providers", {}),
        ("providers.0", "vllm-a"),
        ("providers.0.name", "two words"),
        ("providers.0.adapter", "anthropic"),
        ("providers.0.base_url", "vllm-a:8000"),
        ("providers.0.base_url", "ftp://vllm-a"),
        ("providers.0.base_url", "http://"),
        ("providers.0.base_url", "http://host:99999/v1"),
        ("providers.0.base_url", "http://host:0/v1"),
        ("providers.0.base_url", "http://me:pass@host/v1"),
        ("providers.0.base_url", "http://host/v1?key=1"),
        ("providers.0.base_url", "http://host/v1#there"),
        ("providers.0.base_url", "http://host/a b"),
        ("providers.0.base_url", "http://host/\n"),
        ("providers.0.base_url", "http://h\u00f6st/v1"),
        ("providers.0.base_url", "http://[::1/v1"),
        ("providers.0.max_concurrency", 0),
        ("providers.0.health_path", "health"),
        ("providers.0.health_path", "//other/health"),
        ("models.0.name", "chat-*"),
        ("models.0.tokenizer", "gpt2"),
        ("models.0.max_output_tokens", 0),
        ("models.0.candidates", []),
        ("models.0.candidates.0.weight", 0),
        ("models.0.candidates.0.priority", -1),
        ("models.0.candidates.0.provider", "nobody"),
        ("models.0.candidates.0.model", "line\nfeed"),
        ("routing.retry_budget", 1.1),
        ("routing.breaker.failures", 0),
        ("telemetry.metrics_port", 8080),
        ("telemetry.metrics_port", 0),
    ],
)
def test_parse_settings_names_the_field_when_a_value_is_wrong(
    path: str, value: object
) -> None:
    steps = tuple(int(s) if s.isdecimal() else s for s in path.split("."))
    paths = [
        mistake.partition(": ")[0] for mistake in mistakes_of(changed(steps, value))
    ]
    assert path in paths


def test_parse_settings_names_every_mistake_at_once() -> None:
    document = {
        "server": {"port": 0.5},
        "keys": {"env": "A"},
        "providers": [
            {"name": "a", "adapter": "vllm", "base_url": "http://h/v1"},
            {"name": "a", "adapter": "vllm", "base_url": "nowhere"},
        ],
        "models": [
            {"name": "m", "candidates": [{"provider": "b", "model": "x"}]},
            {
                "name": "m",
                "candidates": [
                    {"provider": "a", "model": "x"},
                    {"provider": "a", "model": "x"},
                ],
            },
        ],
    }
    with pytest.raises(SettingsError) as caught:
        parse_settings(document)
    assert {mistake.partition(": ")[0] for mistake in caught.value.mistakes} == {
        "server.port",
        "providers.1.base_url",
        "providers.1.name",
        "models.0.candidates.0.provider",
        "models.1.name",
        "models.1.candidates.1.model",
    }
    assert caught.value.keys == KeysSettings(env="A")


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(steps=st.sampled_from([s for s, _ in nodes(EXAMPLE)][1:]), value=json_like)
def test_parse_settings_only_ever_raises_settings_error(
    steps: Steps, value: object
) -> None:
    for mistake in mistakes_of(changed(steps, value)):
        assert ": " in mistake
        assert "\n" not in mistake


@given(st.text() | st.binary())
def test_load_settings_only_ever_raises_settings_error(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    assert mistakes_in(tmp_path_factory.getbasetemp(), raw)


@pytest.mark.parametrize("number", ["8_080", "0o17", "08080", "0x1F", "22:22", "+1"])
def test_load_settings_refuses_numbers_that_are_not_what_they_seem(
    tmp_path: Path, number: str
) -> None:
    mistakes = mistakes_in(tmp_path, f"server: {{port: {number}}}\n{MINIMAL}")
    assert mistakes == ("server.port: Input should be a valid integer",)


def test_load_settings_reads_an_exponent_as_a_number(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(f"streaming: {{total_seconds: 1e3}}\n{MINIMAL}")
    assert load_settings(file).streaming.total_seconds == 1000


def test_load_settings_names_fields_that_are_given_twice(tmp_path: Path) -> None:
    text = "server: {port: 1, port: 2, port: 3}\nredis: {}\nredis: {}\n" + MINIMAL
    assert mistakes_in(tmp_path, text) == (
        "redis: given twice",
        "server.port: given twice",
    )


def test_load_settings_lets_a_field_override_a_merged_one(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(
        """
providers:
  - &a {name: a, adapter: vllm, base_url: "http://h/v1"}
  - {<<: *a, name: b}
models:
  - {name: m, candidates: [{provider: b, model: x}]}
"""
    )
    assert load_settings(file).providers[1].adapter == "vllm"


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("server:\n  port: [1", "line 2, column 11"),
        ("server:\n\tport: 1", "line 2, column 1"),
        ("a: 1\n---\nb: 2", "line 2, column 1"),
        (f"redis: *{CANARY}", "line 1, column 8"),
        (f"redis: !{CANARY} x", "line 1, column 8"),
        (b"server: \xff", "position 8"),
        ("server: !!int x", "a value does not fit"),
        ("[" * 5000, "a value does not fit"),
    ],
)
def test_load_settings_says_where_when_the_file_is_not_yaml(
    tmp_path: Path, text: str | bytes, position: str
) -> None:
    (mistake,) = mistakes_in(tmp_path, text)
    assert mistake.startswith(f"{tmp_path / 'gateway.yaml'}: {position}")
    assert CANARY not in mistake


@pytest.mark.parametrize("text", ["", "- a", "42", "text"])
def test_load_settings_says_so_when_the_file_is_no_mapping(
    tmp_path: Path, text: str
) -> None:
    file = tmp_path / "gateway.yaml"
    assert mistakes_in(tmp_path, text) == (f"{file}: must be a mapping",)


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_load_settings_names_the_file_when_it_cannot_be_read(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(tmp_path / name)
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"{tmp_path / name}: ")


def test_settings_cannot_be_changed() -> None:
    settings = load_settings(EXAMPLE_FILE)
    with pytest.raises(ValidationError):
        settings.server.port = 1


def test_base_url_loses_its_last_slash() -> None:
    settings = parse_settings(changed(("providers", 0, "base_url"), "http://h:1/v1/"))
    assert settings.providers[0].base_url == "http://h:1/v1"


def test_secret_is_none_when_the_variable_is_empty_or_unset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SLUICE_TEST", raising=False)
    assert secret("SLUICE_TEST") is None
    monkeypatch.setenv("SLUICE_TEST", "")
    assert secret("SLUICE_TEST") is None
    monkeypatch.setenv("SLUICE_TEST", "x")
    assert secret("SLUICE_TEST") == "x"


def test_environment_names_places(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GATEWAY_CONFIG", "TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert config_path() is None
    assert tokenizer_cache_dir() is None
    monkeypatch.setenv("GATEWAY_CONFIG", "a/b.yaml")
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", "/gym")
    assert config_path() == Path("a/b.yaml")
    assert tokenizer_cache_dir() == Path("/gym")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/tiktoken")
    assert tokenizer_cache_dir() == Path("/tiktoken")


def test_redis_url_is_refused_unquoted_when_its_kind_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("R", f"http://:{CANARY}@host")
    with pytest.raises(SettingsError) as caught:
        redis_url(RedisSettings(url_env="R"))
    assert caught.value.mistakes[0].startswith("redis.url_env: R ")
    assert CANARY not in str(caught.value)
    monkeypatch.delenv("R")
    with pytest.raises(SettingsError):
        redis_url(RedisSettings(url_env="R"))
    monkeypatch.setenv("R", "unix:///run/redis.sock")
    assert redis_url(RedisSettings(url_env="R")) == "unix:///run/redis.sock"
    with pytest.raises(SettingsError):
        redis_url(RedisSettings(url_env="R", cluster=True))


def test_keys_document_text_comes_from_the_file_beside_the_configuration(
    tmp_path: Path,
) -> None:
    (tmp_path / "keys.json").write_text('{"keys": []}')
    file = tmp_path / "gateway.yaml"
    file.write_text(f"keys: {{file: keys.json}}\n{MINIMAL}")
    keys = load_settings(file).keys
    assert keys.file == tmp_path / "keys.json"
    assert keys_document_text(keys) == '{"keys": []}'


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_keys_document_text_names_the_file_when_it_cannot_be_read(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        keys_document_text(KeysSettings(file=path))
    assert caught.value.mistakes[0].startswith(f"keys.file: {path}: ")


def test_keys_document_text_comes_from_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("K", "{}")
    assert keys_document_text(KeysSettings(env="K")) == "{}"
    monkeypatch.delenv("K")
    with pytest.raises(SettingsError) as caught:
        keys_document_text(KeysSettings(env="K"))
    assert caught.value.mistakes == ("keys.env: K is not set",)


def test_unset_variables_names_what_serving_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = load_settings(EXAMPLE_FILE)
    for name in ("REDIS_URL", "VLLM_API_KEY", "OPENAI_API_KEY", "GATEWAY_KEY_PEPPER"):
        monkeypatch.setenv(name, CANARY)
    assert [*unset_variables(settings)] == []
    assert pepper() == CANARY
    assert CANARY not in repr(settings)
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("GATEWAY_KEY_PEPPER")
    assert [*unset_variables(settings)] == [
        "providers.1.api_key_env: OPENAI_API_KEY is not set",
        "keys: GATEWAY_KEY_PEPPER is not set",
    ]


@pytest.mark.parametrize("port", [0, 9090])
def test_metrics_port_may_be_any_but_the_main_port(port: int) -> None:
    document = changed(("server", "port"), port)
    document["telemetry"]["metrics_port"] = 8080
    assert mistakes_of(document) == ()
