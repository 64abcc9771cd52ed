"""``POST /v1/chat/completions``."""

from collections.abc import Mapping
from functools import partial
from typing import NoReturn

from fastapi import APIRouter
from starlette.responses import Response

from gateway.api.authentication import Caller
from gateway.api.exchange_response import ExchangeResponse
from gateway.api.request_body import Body
from gateway.api.services import Given
from gateway.auth.principal import Principal
from gateway.errors import InvalidRequest
from gateway.exchange.ask import Ask
from gateway.providers.provider import Endpoint
from streaming.stages.usage_view import UsageWish

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(caller: Caller, services: Given) -> Response:
    """Answer a chat, streaming or not; the response reads the body itself."""
    return ExchangeResponse(services, partial(read_chat, caller))


def read_chat(caller: Principal, body: Body, request_id: str) -> Ask:
    """What a chat request asks for; its other members are the provider's affair.

    Raises:
        InvalidRequest: ``model``, ``messages``, ``stream`` or ``stream_options`` is
            not what it must be.
    """
    parsed, members = body
    model = parsed.get("model")
    if not isinstance(model, str) or not model:
        _refuse("model", "a string")
    _check_messages(parsed.get("messages"))
    stream = parsed.get("stream")
    if stream is not None and not isinstance(stream, bool):
        _refuse("stream", "true or false")
    return Ask(
        principal=caller,
        endpoint=Endpoint.CHAT_COMPLETIONS,
        model=model,
        body=parsed,
        members=members,
        stream=bool(stream),
        usage=_usage_wish(parsed.get("stream_options")),
        request_id=request_id,
    )


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        _refuse("messages", "a list that is not empty")
    if not all(isinstance(one, Mapping) for one in messages):
        _refuse("messages", "a list of objects")


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
