"""Gateways of others, on request: each installed in a directory of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.load import Door
from bench.processes import TARGET_CORE, await_port, free_port, pinned
from bench.targets import Setting, Target, TargetMissing

_INSTALL_SECONDS = 600
_MASTER_KEY = "sk-bench"


@contextmanager
def litellm(setting: Setting) -> Iterator[Target]:
    """The LiteLLM proxy: one worker, a master key, no database."""
    home = setting.cache / "litellm"
    command = home / "bin" / "litellm"
    if not command.exists():
        uv = os.environ.get("UV") or "uv"  # noqa: TID251 - uv says where it is
        python = str(Path(sys.base_prefix) / "bin" / "python3")
        _install(setting.cache, [uv, "venv", "--python", python, str(home)])
        pip = [uv, "pip", "install", "--python", str(home / "bin" / "python")]
        _install(setting.cache, [*pip, "litellm[proxy]"])
    port = free_port()
    with TemporaryDirectory() as directory:
        config, log = Path(directory) / "config.yaml", Path(directory) / "log"
        config.write_text(json.dumps(_litellm_config(setting)), "utf-8")  # is YAML too
        started = [str(command), "--config", str(config), "--host", "127.0.0.1"]
        environment = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks the network
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
        }
        started += ["--port", str(port), "--num_workers", "1"]
        with pinned(started, TARGET_CORE, log, environment) as pid:
            await_port(port, log)
            door = Door(port, {"authorization": f"Bearer {_MASTER_KEY}"})
            yield Target("litellm", door, pid, setting.provider)


@contextmanager
def portkey(setting: Setting) -> Iterator[Target]:
    """The Portkey gateway: no key of its own, told its provider by headers."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        message = "node or npm is not installed"
        raise TargetMissing(message)
    home = setting.cache / "portkey"
    package = home / "node_modules" / "@portkey-ai" / "gateway"
    if not package.exists():
        home.mkdir(parents=True, exist_ok=True)
        (home / "package.json").write_text(json.dumps(_PORTKEY_MANIFEST), "utf-8")
        _install(home, [npm, "install", "--no-audit", "--no-fund"])
    port = free_port()
    with TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        started = [node, str(package / "build" / "start-server.js"), f"--port={port}"]
        environment = {"NODE_ENV": "production"}
        with pinned([*started, "--headless"], TARGET_CORE, log, environment) as pid:
            await_port(port, log)
            headers = {
                "authorization": "Bearer none",
                "x-portkey-provider": "openai",
                "x-portkey-custom-host": f"http://127.0.0.1:{setting.provider.port}/v1",
            }
            yield Target("portkey", Door(port, headers), pid, setting.provider)


_PORTKEY = "@portkey-ai/gateway"
_PORTKEY_MANIFEST = {
    "dependencies": {_PORTKEY: "^1.15"},
    # With 1.19 every stream is answered with 500: it appends to fetch's own headers.
    "overrides": {"@hono/node-server": "1.13.8"},
}


def version(name: str, cache: Path) -> str:
    """Of a rival that is installed, empty for anything else."""
    if name == "litellm":
        found = sorted(cache.glob("litellm/lib/*/site-packages/litellm-*.dist-info"))
        return found[0].stem.removeprefix("litellm-") if found else ""
    manifest = cache / name / "node_modules" / _PORTKEY / "package.json"
    if manifest.exists():
        return str(json.loads(manifest.read_text("utf-8"))["version"])
    return ""


def _litellm_config(setting: Setting) -> object:
    base = f"http://127.0.0.1:{setting.provider.port}/v1"
    return {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"openai/{name}",
                    "api_base": base,
                    "api_key": "none",
                },
            }
            for name in setting.models
        ],
        "general_settings": {"master_key": _MASTER_KEY},
    }


def _install(directory: Path, command: list[str]) -> None:
    """Run an installer.

    Raises:
        TargetMissing: It has failed, or is not there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ".gitignore").write_text("*\n", "utf-8")
    try:
        subprocess.run(
            command,
            cwd=directory,
            check=True,
            timeout=_INSTALL_SECONDS,
            stdout=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError) as error:
        message = f"{' '.join(command)}: {error}"
        raise TargetMissing(message) from error
