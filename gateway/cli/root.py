"""The ``gateway`` command and its subcommands."""

import typer

from gateway.cli.chat import chat
from gateway.cli.check import check
from gateway.cli.demo import demo
from gateway.cli.keys import keys
from gateway.cli.serve import serve
from gateway.cli.simulate import simulate

# Plain text, never wrapped into boxes: people paste it, and scripts read it.
app = typer.Typer(
    add_completion=False,
    help="Sluice, a streaming-first gateway for large language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(demo)
app.command()(serve)
app.command()(check)
app.command()(chat)
app.command()(simulate)
app.add_typer(keys, name="keys")


def main() -> None:
    """Run the command line; exits 0, 1 (it failed) or 2 (it was called wrongly)."""
    app(prog_name="gateway")
