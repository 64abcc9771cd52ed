"""``gateway simulate``: the simulated provider, alone."""

from typing import Annotated

import typer

from gateway.cli.console import fail
from gateway.demo.scenario import Fault, SimulatorSettings

_DEFAULT = SimulatorSettings()


def simulate(
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65_535, help="0 takes a free one.")
    ] = 8000,
    rate: Annotated[
        float,
        typer.Option(
            metavar="N", min=0, help="Tokens per second; 0: as fast as they are read."
        ),
    ] = _DEFAULT.rate,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens per answer.")
    ] = _DEFAULT.tokens,
    first_token_ms: Annotated[
        float, typer.Option(metavar="MS", min=0, help="Until the first token.")
    ] = _DEFAULT.first_token_ms,
    fault: Annotated[
        Fault | None,
        typer.Option(
            metavar="FAULT",
            help=f"What goes wrong with every answer: {', '.join(Fault)}.",
        ),
    ] = None,
) -> None:
    """Run a simulated vLLM until Ctrl-C."""
    from gateway.cli.simulation import run_simulation

    settings = SimulatorSettings(
        rate=rate, tokens=tokens, first_token_ms=first_token_ms, fault=fault
    )
    try:
        run_simulation(settings, host, port)
    except OSError as error:
        fail([f"cannot listen on {host}:{port}: {error.strerror}"])
