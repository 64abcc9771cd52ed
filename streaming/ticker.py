"""The ticker: one loop that looks at all live exchanges of a process."""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import anyio

from streaming.deadlines import Clock, Wait
from streaming.life import Life

TICK_SECONDS = 0.1
SUSTAINED_TICKS = 3


class Watched(Protocol):
    """A client, as far as a ticker needs to know."""

    def beat(self) -> None:
        """Send a heartbeat, if one may be sent now."""

    def unsent_bytes(self) -> int:
        """What of the answer the client has not taken, as far as one can tell."""


class Ticker:
    """Looks at all live exchanges a few times a second.

    One loop for the process: a timer per stream and token would cost more than the
    relay itself. A deadline is met at most ``TICK_SECONDS`` late, never early.

    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lags = deque([0.0] * SUSTAINED_TICKS, maxlen=SUSTAINED_TICKS)
        self._lives: dict[Life, Watched] = {}
        self._emptied = anyio.Event()

    def watch(self, life: Life, client: Watched) -> None:
        """Keep an eye on this exchange."""
        self._lives[life] = client

    def forget(self, life: Life) -> None:
        """The exchange is over."""
        self._lives.pop(life, None)
        if not self._lives:
            self._emptied.set()

    async def idle(self) -> None:
        """Wait until no exchange is live."""
        while self._lives:
            self._emptied = anyio.Event()
            await self._emptied.wait()

    @property
    def lag_seconds(self) -> float:
        """How late the event loop ran the last tick."""
        return self._lags[-1]

    @property
    def sustained_lag_seconds(self) -> float:
        """The least lag of the last ticks: no single pause raises it."""
        return min(self._lags)

    def __len__(self) -> int:
        """How many exchanges are live."""
        return len(self._lives)

    @property
    def lives(self) -> Sequence[Life]:
        """All live exchanges."""
        return tuple(self._lives)

    def tick(self) -> None:
        """End what is overdue, and let the silent ones beat."""
        now = self._clock()
        for life, client in tuple(self._lives.items()):
            if life.ended:
                continue
            if life.pulse.waits_for is Wait.CLIENT:
                life.pulse.note_unsent(client.unsent_bytes(), now)
            if (fault := life.pulse.overdue(now)) is not None:
                life.end(fault)
            elif life.pulse.heartbeat_due(now):
                life.pulse.client_fed_at = now
                client.beat()

    async def run(self) -> None:
        """Tick until cancelled."""
        passed_over = False
        while True:
            due = self._clock() + TICK_SECONDS
            await anyio.sleep(TICK_SECONDS)
            late = max(0.0, self._clock() - due)
            self._lags.append(late)
            # A process that has not run could not read: what came in time is read
            # before anybody is judged. It is put off once; a loop may always be late.
            passed_over = late > TICK_SECONDS and not passed_over
            if not passed_over:
                self.tick()
