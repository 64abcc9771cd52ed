"""The route of an endpoint that depends on who calls, and on nothing else."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send


class CallerRoute(APIRoute):
    """Calls the endpoint's one dependency with the request, then the endpoint.

    The framework would look for parameters in the path, query, header, cookies and body
    of each request as well, and open exit stacks for them: a tenth of what a request
    costs in all, and a tenth of the memory of a stream that waits. Dependency and
    endpoint are plain functions that never block: they are called on the event loop
    (ADR 19).

    Raises:
        TypeError: When it is made: the endpoint takes something else, or more.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._name, self._dependency = self._only_dependency()
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._dependency(Request(scope))
        response = self.endpoint(**{self._name: found})
        await response(scope, receive, send)

    def _only_dependency(self) -> tuple[str, Callable[[Request], object]]:
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
