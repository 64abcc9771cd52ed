"""``gateway keys``: make keys, and manage them on a live fleet."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from gateway.auth.principal import Limits, Principal
from gateway.auth.secret import digest, new_secret
from gateway.cli.console import StoreConfig, fail

keys = typer.Typer(help="Make and manage API keys.", no_args_is_help=True)

Limit = Annotated[int | None, typer.Option(metavar="N", show_default="unlimited")]


@keys.command()
def new(  # noqa: PLR0913 - a flag for every limit
    *,
    id: Annotated[str, typer.Option(metavar="ID", help="Name of who pays.")],  # noqa: A002 - the flag's name
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Model it may use, by name or with *; repeat for more.",
            show_default="*",
        ),
    ] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrency: Limit = None,
    tokens_per_day: Limit = None,
    tokens_per_month: Limit = None,
    max_output_tokens: Limit = None,
) -> None:
    """Make a key: its secret, printed this once, and its entry in the keys document.

    The entry holds a digest made with GATEWAY_KEY_PEPPER; the gateway must run with
    the same one.
    """
    limits = Limits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrency=concurrency,
        tokens_per_day=tokens_per_day,
        tokens_per_month=tokens_per_month,
        max_output_tokens=max_output_tokens,
    )
    secret = new_secret()
    made = Principal(id, digest(secret, _pepper()), tuple(model or "*"), limits)
    entry = json.dumps(asdict(made))
    _refuse_invalid(entry)
    typer.echo("The secret is shown this once; store the entry.", err=True)
    typer.echo(secret)
    typer.echo(entry)


_Id = Annotated[str, typer.Argument(metavar="ID", help="A key of the document.")]


@keys.command("list")
def list_keys(*, config: StoreConfig = None) -> None:
    """List the keys the store knows, with what they have used."""
    from gateway.cli.live_keys import listing, on_store, statements, table

    found = on_store(config, lambda ledger: statements(ledger, ()))
    for line in table(listing(found)):
        typer.echo(line)


@keys.command()
def usage(
    id: Annotated[str | None, typer.Argument(metavar="[ID]")] = None,  # noqa: A002 - its name in the usage line
    *,
    config: StoreConfig = None,
) -> None:
    """Show the tokens used and held by one key, or by all."""
    from gateway.cli.live_keys import on_store, statements, table
    from gateway.cli.live_keys import usage as rows

    found = on_store(config, lambda ledger: statements(ledger, [id] if id else []))
    for line in table(rows(found)):
        typer.echo(line)


@keys.command()
def revoke(id: _Id, *, config: StoreConfig = None) -> None:  # noqa: A002 - its name in the usage line
    """Refuse a key everywhere from its next request on, and end its live streams."""
    from gateway.cli.live_keys import on_store

    if not on_store(config, lambda ledger: ledger.revoke(id)):
        fail([f"no such key: {id}"])
    typer.echo(f"{id} is revoked")


@keys.command()
def restore(id: _Id, *, config: StoreConfig = None) -> None:  # noqa: A002 - its name in the usage line
    """Lift a revocation."""
    from gateway.cli.live_keys import on_store

    if not on_store(config, lambda ledger: ledger.restore(id)):
        fail([f"no such key: {id}"])
    typer.echo(f"{id} is restored")


def _pepper() -> str:
    from gateway.settings import pepper

    value = pepper()
    if value is None:
        fail(["GATEWAY_KEY_PEPPER is not set"])
    return value


def _refuse_invalid(entry: str) -> None:
    from gateway.auth.keyring import KeysError, parse_keys

    try:
        parse_keys(f'{{"keys": [{entry}]}}')
    except KeysError as error:
        fail([mistake.removeprefix("keys.0.") for mistake in error.mistakes], 2)
