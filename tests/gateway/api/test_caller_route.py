"""The route that calls an endpoint's one dependency, and takes no other endpoint."""

from collections.abc import Callable
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from starlette.responses import PlainTextResponse, Response

from gateway.api.caller_route import CallerRoute


def name_of(request: Request) -> str:
    return request.headers["x-name"]


def name_at(request: Request, prefix: str = "") -> str:
    return prefix + request.headers["x-name"]


def greet(who: Annotated[str, Depends(name_of)]) -> Response:
    return PlainTextResponse(f"hello {who}")


def greet_twice(
    who: Annotated[str, Depends(name_of)], also: Annotated[str, Depends(name_of)]
) -> Response:
    return PlainTextResponse(f"hello {who} and {also}")


def greet_at(who: Annotated[str, Depends(name_at)]) -> Response:
    return PlainTextResponse(f"hello {who}")


def greet_loudly(who: Annotated[str, Depends(name_of)], mark: str) -> Response:
    return PlainTextResponse(f"hello {who}{mark}")


def greet_all() -> Response:
    return PlainTextResponse("hello")


def app_with(endpoint: Callable[..., Response]) -> FastAPI:
    app = FastAPI()
    app.router.add_api_route(
        "/greet", endpoint, methods=["POST"], route_class_override=CallerRoute
    )
    return app


@pytest.mark.anyio
async def test_route_calls_the_endpoint_with_what_its_dependency_returns() -> None:
    transport = httpx.ASGITransport(app_with(greet))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.post("/greet", headers={"x-name": "you"})
        assert (answer.status_code, answer.text) == (200, "hello you")
        assert (await client.get("/greet")).status_code == 405


@pytest.mark.parametrize(
    "endpoint",
    [greet_twice, greet_at, greet_loudly, greet_all],
    ids=lambda e: e.__name__,
)
def test_route_is_refused_when_its_endpoint_takes_more_or_nothing(
    endpoint: Callable[..., Response],
) -> None:
    with pytest.raises(TypeError):
        app_with(endpoint)
