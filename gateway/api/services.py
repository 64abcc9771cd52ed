"""What the routes are given: made by the composition root, found by ``Depends``."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from gateway.admission.ledger import Ledger
from gateway.auth.failures import FailedAuthLimiter
from gateway.auth.keyring import Keyring
from gateway.exchange.exchange import Exchanges
from gateway.settings.schema import Settings
from gateway.telemetry.metrics import Metrics
from streaming.deadlines import Clock


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a route may use."""

    settings: Settings
    keyring: Keyring
    failed_auth: FailedAuthLimiter
    ledger: Ledger
    exchanges: Exchanges
    metrics: Metrics
    clock: Clock


async def services(request: Request) -> Services:  # noqa: RUF029 - a plain function would go through a thread
    """The application's services."""
    found = request.app.state.services
    assert isinstance(found, Services)  # noqa: S101 - set by the composition root
    return found


type Given = Annotated[Services, Depends(services)]
