"""``gateway check``: all that is wrong with a configuration and its keys."""

import typer

from gateway.cli.console import ConfigFile, chosen_config, fail


def check(config: ConfigFile = None) -> None:
    """Validate a configuration and its keys, offline.

    Prints every mistake on a line of its own, with the path of the field. A variable
    that serving needs and that is not set here is a warning only.
    """
    from gateway.cli.examination import examine

    path = chosen_config(config)
    findings = examine(path)
    if findings.mistakes:
        fail(findings.mistakes)
    for warning in findings.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{path}: OK")
