"""The endpoints that cost tokens: chat completions, completions, embeddings.

They differ in where the prompt stands, and in whether an answer may be streamed. All
else of a request is the provider's affair and goes through as it came.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, NoReturn

from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from gateway.api.authentication import authenticate
from gateway.api.caller_route import CallerRoute
from gateway.api.exchange_response import ExchangeResponse
from gateway.api.request_body import Body
from gateway.api.services import Services
from gateway.auth.principal import Principal
from gateway.errors import InvalidRequest
from gateway.exchange.ask import Ask
from gateway.providers.provider import Endpoint
from streaming.stages.usage_view import UsageWish


def add_routes(web: FastAPI, services: Services) -> None:
    """Add the endpoints to the application.

    What a request needs but does not change is bound here, once.
    """

    def caller(request: Request) -> Principal:
        return authenticate(request, services)

    type Caller = Annotated[Principal, Depends(caller)]

    def chat_completions(caller: Caller) -> Response:
        """Answer a chat, streaming or not; the response reads the body itself."""
        return ExchangeResponse(services, partial(read_chat, caller))

    def completions(caller: Caller) -> Response:
        """Go on with a text, or several, streaming or not."""
        return ExchangeResponse(services, partial(read_completion, caller))

    def embeddings(caller: Caller) -> Response:
        """Turn texts into vectors; metered on the prompt alone."""
        return ExchangeResponse(services, partial(read_embedding, caller))

    for endpoint, serve in (
        (Endpoint.CHAT_COMPLETIONS, chat_completions),
        (Endpoint.COMPLETIONS, completions),
        (Endpoint.EMBEDDINGS, embeddings),
    ):
        web.router.add_api_route(
            f"/v1/{endpoint}",
            serve,
            methods=["POST"],
            route_class_override=CallerRoute,
        )


def read_chat(caller: Principal, body: Body, request_id: str) -> Ask:
    """What a chat request asks for.

    Raises:
        InvalidRequest: ``model``, ``messages``, ``stream`` or ``stream_options`` is
            not what it must be.
    """
    _check_messages(body[0].get("messages"))
    return _streamable(Endpoint.CHAT_COMPLETIONS, caller, body, request_id)


def read_completion(caller: Principal, body: Body, request_id: str) -> Ask:
    """What a completion request asks for.

    Raises:
        InvalidRequest: ``model``, ``prompt``, ``stream`` or ``stream_options`` is not
            what it must be.
    """
    _check_texts("prompt", body[0].get("prompt"))
    return _streamable(Endpoint.COMPLETIONS, caller, body, request_id)


def read_embedding(caller: Principal, body: Body, request_id: str) -> Ask:
    """What an embedding request asks for.

    Raises:
        InvalidRequest: ``model`` or ``input`` is not what it must be, or a stream is
            asked for.
    """
    parsed, members = body
    _check_texts("input", parsed.get("input"))
    if parsed.get("stream"):
        _refuse("stream", "false")
    return Ask(
        principal=caller,
        endpoint=Endpoint.EMBEDDINGS,
        model=_model(parsed),
        body=parsed,
        members=members,
        stream=False,
        usage=UsageWish.NONE,
        request_id=request_id,
    )


def _streamable(
    endpoint: Endpoint, caller: Principal, body: Body, request_id: str
) -> Ask:
    parsed, members = body
    stream = parsed.get("stream")
    if stream is not None and not isinstance(stream, bool):
        _refuse("stream", "true or false")
    return Ask(
        principal=caller,
        endpoint=endpoint,
        model=_model(parsed),
        body=parsed,
        members=members,
        stream=bool(stream),
        usage=_usage_wish(parsed.get("stream_options")),
        request_id=request_id,
    )


def _model(parsed: Mapping[str, object]) -> str:
    model = parsed.get("model")
    if not isinstance(model, str) or not model:
        _refuse("model", "a string")
    return model


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        _refuse("messages", "a list that is not empty")
    if not all(isinstance(one, Mapping) for one in messages):
        _refuse("messages", "a list of objects")


def _check_texts(param: str, value: object) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        _refuse(param, "a string or a list that is not empty")


def _usage_wish(options: object) -> UsageWish:
    if options is None:
        return UsageWish.NONE
    if not isinstance(options, Mapping):
        _refuse("stream_options", "an object")
    for name in ("include_usage", "continuous_usage_stats"):
        if not isinstance(options.get(name), bool | None):
            _refuse(f"stream_options.{name}", "true or false")
    if not options.get("include_usage"):
        return UsageWish.NONE
    if options.get("continuous_usage_stats"):
        return UsageWish.EVERYTHING
    return UsageWish.FINAL


def _refuse(param: str, must_be: str) -> NoReturn:
    message = f"{param} must be {must_be}."
    raise InvalidRequest(message, param=param)
