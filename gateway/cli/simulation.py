"""The simulated provider, from the command line until a signal."""

import signal

import anyio
import typer

from gateway.demo.scenario import SimulatorSettings
from gateway.demo.simulated import SimulatedProvider


def run_simulation(settings: SimulatorSettings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; prints the base URL once it answers.

    Raises:
        OSError: The port is taken, or the address is not one of this machine.
    """
    anyio.run(_serve, settings, host, port)


async def _serve(settings: SimulatorSettings, host: str, port: int) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with SimulatedProvider(settings, host=host, port=port) as provider:
            typer.echo(f"simulated provider at {provider.base_url}")
            async for _ in signals:
                return
