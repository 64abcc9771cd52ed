import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from gateway.auth.keyring import Keyring, parse_keys
from gateway.auth.principal import Limits
from gateway.auth.secret import is_well_formed

GATEWAY = Path(sys.executable).with_name("gateway")
EXAMPLE = Path(__file__).parents[2] / "docs" / "example-config.yaml"
PEPPER = "a-pepper-that-is-secret"
NO_KEYS = '{"keys": []}'


def gateway(
    *arguments: str | Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the console script in an environment of its own."""
    return subprocess.run(
        [GATEWAY, *arguments],
        env={"PATH": os.environ["PATH"], **variables},  # noqa: TID251 - to find Python
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@contextmanager
def simulation(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running ``gateway simulate`` on a free port, and its base URL."""
    command = [str(GATEWAY), "simulate", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            yield running, running.stdout.readline().split()[-1]
        finally:
            running.kill()


def test_check_accepts_the_example() -> None:
    ran = gateway("check", "--config", EXAMPLE, GATEWAY_KEYS=NO_KEYS)
    assert (ran.returncode, ran.stdout) == (0, f"{EXAMPLE}: OK\n")
    assert ran.stderr.splitlines() == [
        "warning: redis.url_env: REDIS_URL is not set",
        "warning: providers.0.api_key_env: VLLM_API_KEY is not set",
        "warning: providers.1.api_key_env: OPENAI_API_KEY is not set",
        "warning: keys: GATEWAY_KEY_PEPPER is not set",
    ]


def test_check_takes_the_file_that_the_environment_names() -> None:
    ran = gateway("check", GATEWAY_CONFIG=str(EXAMPLE), GATEWAY_KEYS=NO_KEYS)
    assert ran.returncode == 0


def test_check_prints_every_mistake_of_configuration_and_keys(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(
        EXAMPLE
        .read_text("utf-8")
        .replace("http://vllm-a:8000/v1", "http://me:hunter2@vllm-a:8000/v1")
        .replace("provider: openai,", "provider: nobody,")
        .replace("idle_seconds: 30", "idle_secs: 30")
    )
    key = {"id": "a", "digest": "hunter2", "limits": {"tokens_per_day": -1}}
    document = json.dumps({"keys": [key]})
    ran = gateway("check", "--config", config, GATEWAY_KEYS=document)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert [line.partition(": ")[0] for line in ran.stderr.splitlines()] == [
        "streaming.idle_secs",
        "providers.0.base_url",
        "models.0.candidates.1.provider",
        "keys.0.digest",
        "keys.0.limits.tokens_per_day",
    ]
    assert "hunter2" not in ran.stderr


@pytest.mark.parametrize(
    ("variables", "path"),
    [
        ({}, "keys.env"),
        ({"GATEWAY_KEYS": "{"}, "keys"),
        ({"GATEWAY_KEYS": NO_KEYS, "REDIS_URL": "localhost"}, "redis.url_env"),
    ],
)
def test_check_fails_when_a_variable_is_wrong(
    variables: dict[str, str], path: str
) -> None:
    ran = gateway("check", "--config", EXAMPLE, **variables)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"{path}: ")
    assert len(ran.stderr.splitlines()) == 1


def test_check_names_the_file_when_it_is_not_there(tmp_path: Path) -> None:
    ran = gateway("check", "--config", tmp_path / "absent.yaml")
    assert ran.returncode == 1
    assert ran.stderr == f"{tmp_path}/absent.yaml: No such file or directory\n"


def test_check_exits_2_when_no_file_is_named() -> None:
    ran = gateway("check")
    assert ran.returncode == 2
    assert "--config" in ran.stderr


def test_keys_new_prints_a_secret_and_the_entry_that_knows_it() -> None:
    ran = gateway(
        *("keys", "new", "--id", "team-a", "--model", "chat-*", "--model", "embed"),
        *("--tokens-per-day", "5000", "--concurrency", "3"),
        GATEWAY_KEY_PEPPER=PEPPER,
    )
    assert ran.returncode == 0
    secret, entry = ran.stdout.splitlines()
    (principal,) = parse_keys(f'{{"keys": [{entry}]}}')
    assert is_well_formed(secret)
    assert Keyring([principal], PEPPER).find(secret) == principal
    assert principal.id == "team-a"
    assert principal.models == ("chat-*", "embed")
    assert principal.limits == Limits(tokens_per_day=5000, concurrency=3)
    assert secret not in entry + ran.stderr
    assert PEPPER not in ran.stdout + ran.stderr


def test_keys_new_allows_everything_when_nothing_is_said() -> None:
    ran = gateway("keys", "new", "--id", "a", GATEWAY_KEY_PEPPER=PEPPER)
    entry = json.loads(ran.stdout.splitlines()[1])
    assert entry["models"] == ["*"]
    assert len(entry["limits"]) == 6
    assert set(entry["limits"].values()) == {None}


def test_keys_new_makes_nothing_when_there_is_no_pepper() -> None:
    ran = gateway("keys", "new", "--id", "a", GATEWAY_KEY_PEPPER="")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "GATEWAY_KEY_PEPPER is not set\n"


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (("--id", "two words"), "id"),
        (("--id", ""), "id"),
        (("--id", "a", "--tokens-per-day", "-1"), "limits.tokens_per_day"),
        (("--id", "a", "--concurrency", "0"), "limits.concurrency"),
        (("--id", "a", "--model", "b", "--model", "[c]"), "models.1"),
    ],
)
def test_keys_new_makes_nothing_when_an_argument_is_wrong(
    arguments: tuple[str, ...], path: str
) -> None:
    ran = gateway("keys", "new", *arguments, GATEWAY_KEY_PEPPER=PEPPER)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"{path}: ")


@pytest.mark.parametrize(
    "command", [[], ["check"], ["keys"], ["keys", "new"], ["simulate"]], ids=" ".join
)
def test_every_command_explains_itself(command: list[str]) -> None:
    ran = gateway(*command, "--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(" ".join(["Usage: gateway", *command]) + " [OPTIONS]")


@pytest.mark.parametrize(
    "command",
    [
        ["nothing"],
        ["keys", "nothing"],
        ["keys", "new"],
        ["check", "--nothing"],
        ["simulate", "--fault", "nothing"],
        ["simulate", "--tokens", "0"],
        ["simulate", "--port", "65536"],
    ],
    ids=" ".join,
)
def test_command_exits_2_when_it_is_called_wrongly(command: list[str]) -> None:
    ran = gateway(*command)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Error: " in ran.stderr


def test_module_is_the_same_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "gateway", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert ran.stdout == gateway("--help").stdout


def test_command_line_starts_without_what_is_slow_to_import() -> None:
    program = """
import sys, gateway.cli
slow = {"anyio", "asyncio", "fastapi", "httpx", "pydantic", "redis", "yaml"}
print(*slow & sys.modules.keys())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, timeout=30
    )
    assert ran.stdout == b"\n"


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_simulate_serves_until_a_signal(ending: signal.Signals) -> None:
    with simulation("--rate", "0", "--tokens", "7", "--first-token-ms", "0") as (
        running,
        base_url,
    ):
        answer = httpx.post(
            f"{base_url}/chat/completions",
            json={"model": "any", "messages": [{"role": "user", "content": "Hi"}]},
            trust_env=False,
        )
        assert answer.json()["usage"]["completion_tokens"] == 7
        running.send_signal(ending)
        assert running.wait(timeout=10) == 0


def test_simulate_fails_as_it_is_told() -> None:
    with simulation("--fault", "status-503", "--first-token-ms", "0") as (_, base_url):
        answer = httpx.post(
            f"{base_url}/completions", json={"prompt": "Hi"}, trust_env=False
        )
    assert answer.status_code == 503


def test_simulate_names_the_port_when_it_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = gateway("simulate", "--port", str(port))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert f"127.0.0.1:{port}" in ran.stderr
