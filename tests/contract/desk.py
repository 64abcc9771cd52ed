"""What tests of ledgers share: a key each, holds with fresh ids, and read-outs."""

import itertools
import os
from dataclasses import dataclass

import pytest

from gateway.admission.ledger import Grant, Hold, Ledger, Refused, Renewal, Statement
from gateway.auth.principal import Limits, Principal
from streaming.errors import Fault

_numbers = itertools.count(1)


@dataclass
class Desk:
    """A ledger at work, and one on the same books that makes leases run out."""

    ledger: Ledger
    lapsing: Ledger

    async def key(self, **limits: int) -> str:
        """A key for one test alone, so that tests may share a store."""
        name = f"key-{os.getpid()}-{next(_numbers)}"
        await self.ledger.seed([Principal(name, "digest", limits=Limits(**limits))])
        return name

    async def lapse(
        self, grant: Grant, *, allowed: int = 0, dispatched: bool = False
    ) -> None:
        """Let a lease run out. The hold stands until somebody sweeps."""
        await self.lapsing.renew([Renewal(grant, allowed, dispatched)])


def hold_of(
    principal: str, prompt: int = 10, completion: int = 90, *, stream: bool = True
) -> Hold:
    """A hold with an id never used before."""
    name = f"r{os.getpid()}x{next(_numbers)}"
    return Hold(name, principal, "chat-small", prompt, completion, stream)


def day_of(statement: Statement) -> tuple[int, int]:
    """Tokens used and held today; the month must say the same."""
    day, month = statement.windows
    assert (day.name, month.name) == ("day", "month")
    assert (day.used, day.reserved) == (month.used, month.reserved)
    return day.used, day.reserved


async def refusal_of(ledger: Ledger, hold: Hold) -> tuple[Fault, Refused]:
    """The fault of a reserve that must be refused, and what the books say of it."""
    with pytest.raises(Fault) as caught:
        await ledger.reserve(hold)
    assert isinstance(caught.value.__cause__, Refused)
    return caught.value, caught.value.__cause__
