"""``GET /v1/models``: what the caller's key may use."""

from typing import TypedDict

from fastapi import APIRouter

from gateway.api.authentication import Caller
from gateway.api.services import Given
from gateway.errors import InvalidApiKey, ModelNotFound

router = APIRouter()


class Model(TypedDict):
    """A model, as OpenAI lists it."""

    id: str
    object: str
    created: int
    owned_by: str


class Models(TypedDict):
    """All of them."""

    object: str
    data: list[Model]


@router.get("/v1/models")
async def models(caller: Caller, services: Given) -> Models:
    """The models this key may use, in the order of the configuration."""
    if await services.ledger.is_revoked(caller.id):
        raise InvalidApiKey
    names = services.exchanges.router.models
    return {
        "object": "list",
        "data": [_model(name) for name in names if caller.may_use(name)],
    }


@router.get("/v1/models/{name:path}")
async def model(name: str, caller: Caller, services: Given) -> Model:
    """One model; one the key may not use does not exist for it."""
    if await services.ledger.is_revoked(caller.id):
        raise InvalidApiKey
    if name not in services.exchanges.router.models or not caller.may_use(name):
        raise ModelNotFound(param="model")
    return _model(name)


def _model(name: str) -> Model:
    return {"id": name, "object": "model", "created": 0, "owned_by": "sluice"}
