"""A ticker whose process did not run: what came in time is read before it judges."""

from dataclasses import dataclass

import anyio
import pytest

from streaming.deadlines import Deadlines, Pulse, Wait
from streaming.life import Life
from streaming.testing import ManualClock
from streaming.ticker import TICK_SECONDS, Ticker

pytestmark = pytest.mark.anyio

ASLEEP_SECONDS = 10.0
IDLE_SECONDS = 1.0


class Nobody:
    """A client who needs nothing."""

    def beat(self) -> None:
        pass

    def unsent_bytes(self) -> int:
        return 0


@dataclass
class Sleeper:
    """A clock that sleeps during each of the first ticks, between its two looks."""

    clock: ManualClock
    naps: int
    looks: int = 0

    def __call__(self) -> float:
        self.looks += 1
        if self.looks % 2 == 0 and self.naps > 0:  # the second look of a tick
            self.naps -= 1
            self.clock.now += ASLEEP_SECONDS
        return self.clock.now


async def ticked(naps: int, ticks: int) -> Life:
    """A life that waits for bytes, after so many ticks; the first ones are late."""
    clock = ManualClock()
    ticker = Ticker(Sleeper(clock, naps))
    pulse = Pulse(Deadlines(idle_seconds=IDLE_SECONDS, heartbeat_seconds=0), clock.now)
    pulse.wait_for(Wait.NEXT_BYTES, clock.now)
    life = Life(pulse)
    ticker.watch(life, Nobody())
    with life, anyio.move_on_after(TICK_SECONDS * (ticks + 0.5)):
        await ticker.run()
    return life


async def test_nobody_is_judged_when_a_tick_is_late() -> None:
    assert not (await ticked(naps=1, ticks=1)).ended


@pytest.mark.parametrize("naps", [1, 2])
async def test_who_is_still_silent_is_judged_at_the_next_tick(naps: int) -> None:
    assert (await ticked(naps, ticks=2)).ended
