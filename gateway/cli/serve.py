"""``gateway serve``: the gateway in production."""

from typing import Annotated

import typer

from gateway.cli.console import ConfigFile, chosen_config, fail


def serve(
    *,
    config: ConfigFile = None,
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Instead of the configuration's."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            max=65_535,
            help="Instead of the configuration's; 0 takes a free one.",
        ),
    ] = None,
    log_level: Annotated[
        str,
        typer.Option(metavar="LEVEL", help="critical, error, warning, info, debug."),
    ] = "info",
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal exits at once."""
    from gateway.server.server import serve as serve_until_signal
    from gateway.settings import DocumentError, load_settings

    try:
        settings = load_settings(chosen_config(config))
        serve_until_signal(settings, host=host, port=port, log_level=log_level)
    except DocumentError as error:
        fail(error.mistakes)
    except OSError as error:
        fail([f"cannot listen: {error.strerror or error}"])
