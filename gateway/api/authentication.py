"""Who is asking, as a dependency of every route that costs something."""

from typing import Annotated

from fastapi import Depends, Request

from gateway.api.services import Given, Services
from gateway.auth.bearer import bearer
from gateway.auth.principal import Principal
from gateway.errors import InvalidApiKey, RateLimited


def authenticate(request: Request, services: Services) -> Principal:
    """The principal whose key the request carries.

    Raises:
        InvalidApiKey: No key, or none that is known.
        RateLimited: The same, too often from one address.
    """
    principal = services.keyring.find(bearer(request.scope["headers"]))
    if principal is not None:
        return principal
    address = request.client.host if request.client else ""
    wait = services.failed_auth.note_failure(address, services.clock())
    if wait is not None:
        message = "Too many failed authentications."
        raise RateLimited(message, retry_after_seconds=wait)
    raise InvalidApiKey


async def authenticated(request: Request, services: Given) -> Principal:  # noqa: RUF029 - a plain function would go through a thread
    """See ``authenticate``."""
    return authenticate(request, services)


type Caller = Annotated[Principal, Depends(authenticated)]
