"""``gateway serve``: the gateway in production."""

from typing import Annotated

import typer

from gateway.cli.console import ConfigFile, chosen_config, fail

MOST_WORKERS = 64
"""Each has two descriptors in every one of them."""


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
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=MOST_WORKERS,
            help="Processes that share the port, best one for each core.",
        ),
    ] = 1,
    log_level: Annotated[
        str,
        typer.Option(metavar="LEVEL", help="critical, error, warning, info, debug."),
    ] = "info",
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal exits at once."""
    from gateway.server import server
    from gateway.server import workers as several
    from gateway.settings import DocumentError, load_settings

    code = 0
    try:
        settings = load_settings(chosen_config(config))
        if workers == 1:
            server.serve(settings, host=host, port=port, log_level=log_level)
        else:
            code = several.serve(
                settings, workers, host=host, port=port, log_level=log_level
            )
    except DocumentError as error:
        fail(error.mistakes)
    except OSError as error:
        fail([f"cannot listen: {error.strerror or error}"])
    raise typer.Exit(code)
