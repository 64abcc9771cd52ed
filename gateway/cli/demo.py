"""``gateway demo``: the whole thing on one machine, with nothing installed."""

from typing import Annotated

import typer

from gateway.cli.console import fail


def demo(
    *,
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65_535, help="0 takes a free one.")
    ] = 8080,
) -> None:
    """Run a gateway, a simulated provider and an embedded Valkey until Ctrl-C."""
    from gateway.cli.demonstration import run_demo

    try:
        run_demo(port)
    except OSError as error:
        fail([f"cannot listen on 127.0.0.1:{port}: {error.strerror or error}"])
