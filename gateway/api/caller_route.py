"""The route of an endpoint that depends on who calls, and on nothing else."""

from collections.abc import Callable, Coroutine
from inspect import signature
from typing import Any, cast, override

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

type Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class CallerRoute(APIRoute):
    """Calls the endpoint's one dependency with the request, then the endpoint.

    The framework's solver would look for parameters in the path, query, header, cookies
    and body of each request as well, for a tenth of what a request costs in all. Both
    are plain functions that never block: they are called on the event loop.

    Raises:
        TypeError: When it is made: the endpoint takes something else, or more.
    """

    @override
    def get_route_handler(self) -> Handler:
        endpoint = cast("Callable[..., Response]", self.endpoint)
        name, dependency = self._dependency()

        async def handle(request: Request) -> Response:  # noqa: RUF029 - as the framework wants it
            return endpoint(**{name: dependency(request)})

        return handle

    def _dependency(self) -> tuple[str, Callable[[Request], object]]:
        match self.dependant.dependencies:
            case [one] if (
                one.name is not None
                and one.call is not None
                and one.request_param_name is not None
                and len(signature(one.call).parameters) == 1
                and len(signature(self.endpoint).parameters) == 1
            ):
                return one.name, one.call
        message = f"{self.name} takes more than its caller"
        raise TypeError(message)
