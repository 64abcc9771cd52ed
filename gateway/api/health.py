"""What orchestrators and Prometheus ask: alive, ready, and the figures."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from gateway.api.services import Given
from gateway.errors import StoreUnavailable

router = APIRouter()
metrics_router = APIRouter()


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The event loop is alive; nothing else is asked."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(services: Given) -> Response:
    """Whether exchanges can be served: the store answers, and we are not leaving."""
    reasons = []
    try:
        await services.ledger.ping()
    except StoreUnavailable:
        reasons.append("redis")
    if services.exchanges.draining:
        reasons.append("draining")
    if reasons:
        return JSONResponse({"status": "unready", "reasons": reasons}, 503)
    return JSONResponse({"status": "ready"})


@metrics_router.get("/metrics")
async def metrics(services: Given) -> Response:
    """Everything Prometheus may know."""
    figures = services.metrics
    return Response(figures.exposition(), media_type=figures.content_type)
