"""The breaker of one candidate: a value; each event makes the next one.

========== ============================ ==========================================
state      event                        next
========== ============================ ==========================================
closed     failed, the n-th in a window open
closed     failed                       closed
closed     answered                     closed, no failure counted
open       time is up, an attempt       half-open: that attempt is the probe
half-open  another attempt              refused, as while open
half-open  failed                       open
half-open  answered                     closed
half-open  abandoned (client left)      open, and the next attempt is the probe
========== ============================ ==========================================

A failure is a refused or lost connection, a time-out, a truncated answer or a 5xx;
never a 4xx, a 429, or a client that leaves.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """When a breaker opens, and for how long.

    Attributes:
        failures: Within the window; at least 1.
        window_seconds: How long a failure counts.
        open_seconds: Until a probe.
    """

    failures: int
    window_seconds: float
    open_seconds: float


@dataclass(frozen=True, slots=True)
class Breaker:
    """Whether a candidate is worth an attempt.

    Attributes:
        failed_at: Times of the failures that count, oldest first.
        open_until: When a probe may be made; None while closed.
        probing: The probe is under way.
    """

    failed_at: tuple[float, ...] = ()
    open_until: float | None = None
    probing: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it is open or half-open."""
        return self.open_until is not None

    def admits(self, now: float) -> bool:
        """Whether an attempt may be made now."""
        return self.open_until is None or (now >= self.open_until and not self.probing)

    def begun(self) -> "Breaker":
        """An attempt that was admitted has begun."""
        return replace(self, probing=True) if self.is_open else self

    def answered(self) -> "Breaker":
        """The candidate has answered, be it to refuse."""
        return Breaker()

    def abandoned(self) -> "Breaker":
        """The attempt ended without telling anything of the candidate."""
        return replace(self, probing=False)

    def failed(self, now: float, rule: BreakerRule) -> "Breaker":
        """The candidate has failed."""
        since = now - rule.window_seconds
        failed_at = (*(at for at in self.failed_at if at > since), now)
        if self.probing or len(failed_at) >= rule.failures:
            return Breaker(open_until=now + rule.open_seconds)
        return replace(self, failed_at=failed_at)
