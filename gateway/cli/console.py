"""What the commands have in common."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration file. Default: the one GATEWAY_CONFIG names.",
    ),
]

StoreConfig = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar="GATEWAY_CONFIG",
        help="Configuration that names the store's variable. Default: REDIS_URL.",
    ),
]


def chosen_config(config: Path | None) -> Path:
    """The file given, or the environment's.

    Raises:
        typer.BadParameter: There is neither.
    """
    from gateway.settings import config_path

    chosen = config or config_path()
    if chosen is None:
        message = "give a file, or set GATEWAY_CONFIG"
        raise typer.BadParameter(message, param_hint="--config")
    return chosen


def fail(lines: Iterable[str], code: int = 1) -> NoReturn:
    """Say why on standard error, a line each, and exit."""
    for line in lines:
        typer.echo(line, err=True)
    raise typer.Exit(code)
