"""The table of races again and again, each time in an order of its own.

What a case leaves behind it, the next one meets: a connection that was lost, a lease
that has been swept, a gateway that is on its way out. ``SOAK_SEED`` repeats
a run, ``MATRIX_ROUNDS`` says how many there are.
"""

import os
from random import Random
from secrets import randbits

import pytest

from tests.integration import test_races as races
from tests.integration.fleet import eventually
from tests.integration.test_races import House

pytestmark = [pytest.mark.anyio, pytest.mark.soak, pytest.mark.timeout(300)]

ROUNDS = int(os.environ.get("MATRIX_ROUNDS", "20"))  # noqa: TID251 - a switch of tests
SEED = int(os.environ.get("SOAK_SEED", randbits(32)))  # noqa: TID251 - a switch of tests
anyio_backend = races.anyio_backend
house = pytest.fixture(
    races.standing, scope="module", name="house", params=range(ROUNDS)
)


async def test_races_end_as_the_table_says_in_any_order(
    house: House, request: pytest.FixtureRequest
) -> None:
    cells = list(races.TABLE)
    Random(SEED + request.node.callspec.params["house"]).shuffle(cells)
    print(f"\nSOAK_SEED={SEED}")
    for row, column in cells:
        print(row, column)
        await races.test_race_ends_as_the_table_says(house, row, column)
        assert await eventually(lambda: queued(house), lambda now: now == 0) == 0


async def queued(house: House) -> int:
    """Settlements that may have been made, but of which no gateway knows yet."""
    fleets = (house.patient, house.hasty)
    found = [await one.metric("gateway_settlement_queue") for one in fleets]
    return sum(one.total() for one in found)
