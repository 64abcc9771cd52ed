"""``GET /v1/quota``: the caller's own books, as one consistent snapshot."""

from datetime import UTC, datetime
from typing import TypedDict

from fastapi import APIRouter

from gateway.admission.ledger import OpenReservation, Rate, Statement, Window
from gateway.api.authentication import Caller
from gateway.api.services import Given
from gateway.errors import InvalidApiKey

router = APIRouter()


class WindowBody(TypedDict):
    """A calendar window; null limit and remaining are unlimited."""

    name: str
    limit: int | None
    used: int
    reserved: int
    remaining: int | None
    resets_at: str


class RateBody(TypedDict):
    """A rate; nulls are unlimited."""

    limit: int | None
    remaining: int | None


class ReservationBody(TypedDict):
    """An open reservation; progress in completion tokens."""

    id: str
    model: str
    reserved: int
    progress: int
    age_seconds: float


class ConcurrencyBody(TypedDict):
    """Exchanges in flight, over the whole fleet."""

    limit: int | None
    in_use: int


class Quota(TypedDict):
    """The whole read-out."""

    object: str
    key: str
    windows: list[WindowBody]
    rates: dict[str, RateBody]
    concurrency: ConcurrencyBody
    reservations: list[ReservationBody]


@router.get("/v1/quota")
async def quota(caller: Caller, services: Given) -> Quota:
    """What this key has used, holds and has left."""
    statement = await services.ledger.read(caller.id)
    if statement.revoked:
        raise InvalidApiKey
    return _body(statement)


def _body(statement: Statement) -> Quota:
    return {
        "object": "quota",
        "key": statement.principal,
        "windows": [_window(window) for window in statement.windows],
        "rates": {
            "requests_per_minute": _rate(statement.requests),
            "tokens_per_minute": _rate(statement.tokens),
        },
        "concurrency": {
            "limit": statement.concurrency_limit,
            "in_use": statement.in_use,
        },
        "reservations": [_reservation(one) for one in statement.reservations],
    }


def _window(window: Window) -> WindowBody:
    taken = window.used + window.reserved
    resets_at = datetime.fromtimestamp(window.resets_at_ms / 1000, UTC)
    return {
        "name": window.name,
        "limit": window.limit,
        "used": window.used,
        "reserved": window.reserved,
        "remaining": None if window.limit is None else max(0, window.limit - taken),
        "resets_at": resets_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _rate(rate: Rate | None) -> RateBody:
    if rate is None:
        return {"limit": None, "remaining": None}
    return {"limit": rate.limit, "remaining": rate.remaining}


def _reservation(one: OpenReservation) -> ReservationBody:
    return {
        "id": one.id,
        "model": one.model,
        "reserved": one.reserved,
        "progress": one.progress,
        "age_seconds": round(one.age_seconds, 3),
    }
