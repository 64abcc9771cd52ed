"""The demo: three processes on loopback, gone with this one."""

import json
import secrets
import socket
import sys

import anyio
import typer

from gateway.app import Application
from gateway.auth.keyring import Keyring
from gateway.auth.principal import Limits, Principal
from gateway.auth.secret import digest, new_secret
from gateway.demo.processes import Child
from gateway.demo.valkey import EmbeddedValkey
from gateway.server.server import listen, make_server
from gateway.settings import Settings, parse_settings

_START_SECONDS = 15.0
_LIMITS = Limits(
    requests_per_minute=6000,
    tokens_per_minute=20_000_000,
    concurrency=2000,
    tokens_per_day=50_000_000,
    max_output_tokens=65_536,
)
_MODELS = {"chat-small": "sim-r50-t120-f100", "chat-fast": "sim-r500-t400-f20"}


def run_demo(port: int) -> None:
    """Run until Ctrl-C or SIGTERM.

    Raises:
        OSError: The port is taken.
    """
    with listen("127.0.0.1", port) as listener:
        anyio.run(_demonstrate, listener, backend_options={"use_uvloop": True})


async def _demonstrate(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    secret, pepper = new_secret(), secrets.token_hex(16)
    keyring = Keyring(
        [Principal("demo", digest(secret, pepper), limits=_LIMITS)], pepper
    )
    simulator = Child([sys.executable, "-m", "gateway", "simulate", "--port", "0"])
    async with EmbeddedValkey() as valkey, simulator:
        line = await simulator.read_line(_START_SECONDS)
        settings = _settings(provider=line.rsplit(" ", 1)[-1].strip())
        application = Application(settings, valkey.url, keyring)
        server = make_server(
            application, "warning", on_started=lambda: _say_hello(port, secret)
        )
        await server.serve(sockets=[listener])
    _say_goodbye(application)


def _settings(provider: str) -> Settings:
    return parse_settings({
        "server": {"host": "127.0.0.1", "drain_seconds": 2},
        "providers": [
            {
                "name": "simulated",
                "adapter": "vllm",
                "base_url": provider,
                "max_concurrency": 10_000,
            }
        ],
        "models": [
            {"name": name, "candidates": [{"provider": "simulated", "model": model}]}
            for name, model in _MODELS.items()
        ],
    })


def _say_hello(port: int, secret: str) -> None:
    base_url = f"http://127.0.0.1:{port}/v1"
    ask = {
        "model": "chat-small",
        "stream": True,
        "messages": [{"role": "user", "content": "Tell me about rivers."}],
    }
    typer.echo(
        f"""\
Sluice is running: a gateway, a simulated provider and an embedded Valkey.

  base URL  {base_url}
  key       {secret}
  models    {", ".join(_MODELS)}

Stream an answer:

  curl -N {base_url}/chat/completions -H 'authorization: Bearer {secret}' \
-d '{json.dumps(ask)}'

What it cost:

  curl {base_url}/quota -H 'authorization: Bearer {secret}'

Ctrl-C ends everything."""
    )


def _say_goodbye(application: Application) -> None:
    exchanges = application.exchanges
    outcomes = ", ".join(
        f"{count} {outcome}" for outcome, count in sorted(exchanges.ended.items())
    )
    typer.echo(
        f"\nServed {exchanges.ended.total()} exchanges"
        f" ({outcomes or 'none'}), {exchanges.charged} tokens charged."
    )
