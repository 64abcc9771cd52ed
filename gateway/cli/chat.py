"""``gateway chat``: a terminal client of any OpenAI-compatible server."""

import sys
from typing import Annotated

import typer

from gateway.cli.console import fail


def chat(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="Default: what is piped in."),
    ] = None,
    *,
    model: Annotated[str, typer.Option(metavar="NAME")] = "chat-small",
    base_url: Annotated[
        str, typer.Option(metavar="URL", help="Up to and with /v1.")
    ] = "http://127.0.0.1:8080/v1",
    key: Annotated[
        str,
        typer.Option(
            metavar="SECRET", envvar="GATEWAY_API_KEY", help="Sent as bearer token."
        ),
    ] = "",
) -> None:
    """Stream an answer, then print time to first token, tokens per second, usage."""
    from gateway.cli.conversation import ChatFailed, converse

    text = sys.stdin.read() if prompt is None else prompt
    if not text.strip():
        fail(["there is no prompt"], 2)
    try:
        converse(text, model=model, base_url=base_url, key=key)
    except ChatFailed as error:
        fail([f"\n{error}"])
