"""How the candidates stand, as this process sees it: busy, broken, down, or free."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from gateway.errors import NoHealthyProvider, Overloaded
from gateway.routing.affinity import most_live, preference
from gateway.routing.breaker import Breaker, BreakerRule
from gateway.routing.router import Candidate
from gateway.telemetry.metrics import AttemptResult, Metrics
from streaming.deadlines import Clock
from streaming.errors import Fault

EXTRA_ATTEMPTS = 3
"""Attempts after the first that are always allowed at a time."""
_PROBE_SECONDS = 1.0
_UNBOUNDED = 1 << 31
_LAST = (2, 0.0)
_FAILED = {AttemptResult.ERROR, AttemptResult.TIMEOUT}

type _Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Rules:
    """What attempts may be made.

    Attributes:
        most: Provider name to the exchanges it may have at a time.
        retry_budget: Extra attempts as a share of the live ones.
        breaker: When a failing candidate is left alone.
        max_load: Of a candidate that a session prefers, times its share.
    """

    most: Mapping[str, int]
    retry_budget: float
    breaker: BreakerRule
    max_load: float = 1.25


class Standing:
    """Who may be asked, in which order.

    Args:
        rules: What is allowed.
        metrics: Told of attempts, breakers and providers.
        clock: Monotonic seconds.

    Attributes:
        clock: The same.
    """

    def __init__(self, rules: Rules, metrics: Metrics, clock: Clock) -> None:
        self._rules = rules
        self._metrics = metrics
        self.clock = clock
        self._live: Counter[str] = Counter()
        self._extra = 0
        self._breakers: dict[_Key, Breaker] = {}
        self._down: set[str] = set()
        self._limited_until: dict[_Key, float] = {}

    def in_order(
        self, candidates: Sequence[Candidate], session: str = ""
    ) -> Sequence[Candidate]:
        """By priority; among equals first who has the least to do for its weight.

        With a session first whom that prefers, unless that one has too much to do.
        Whoever has said that its own limit is reached comes last for a while.
        """
        now = self.clock()

        def group(one: Candidate) -> tuple[bool, int]:
            return self._limited_until.get(_key(one), now) > now, one.priority

        in_groups = sorted(candidates, key=lambda one: (group(one), self._load(one)))
        if not session:
            return in_groups
        return [
            one
            for _, equals in groupby(in_groups, key=group)
            for one in self._by_preference(list(equals), session)
        ]

    def _by_preference(
        self, equals: Sequence[Candidate], session: str
    ) -> Sequence[Candidate]:
        able = [one for one in equals if self.admits(one)]
        weights = sum(one.weight for one in able)
        total = sum(self._live[name] for name in {one.provider.name for one in able})

        def rank(one: Candidate) -> tuple[int, float]:
            if one not in able:
                return _LAST
            most = most_live(total, one.weight / weights, self._rules.max_load)
            is_busy = self._live[one.provider.name] + 1 > most
            name = f"{one.provider.name}/{one.model}"
            return int(is_busy), -preference(session, name, one.weight)

        return sorted(equals, key=rank)

    def _load(self, candidate: Candidate) -> float:
        return (self._live[candidate.provider.name] + 1) / candidate.weight

    def admits(self, candidate: Candidate) -> bool:
        """Whether the candidate may be asked now; a "no" costs nothing."""
        return self._is_healthy(candidate) and not self._is_full(candidate)

    def may_retry(self) -> bool:
        """Whether an exchange may make one more attempt."""
        budget = self._rules.retry_budget * (self._live.total() - self._extra)
        return self._extra < max(EXTRA_ATTEMPTS, budget)

    def refusal(self, candidates: Sequence[Candidate]) -> Fault:
        """Why none of these could be asked."""
        if any(self._is_healthy(one) for one in candidates):
            return Overloaded(retry_after_seconds=1.0)
        now = self.clock()
        probes = [
            max(0.0, until - now)
            for one in candidates
            if (until := self._breaker(one).open_until) is not None
        ]
        wait = min(probes, default=_PROBE_SECONDS)
        return NoHealthyProvider(retry_after_seconds=max(wait, 0.001))

    def begin(self, candidate: Candidate, *, extra: bool) -> None:
        """An attempt begins; ``extra`` when it is not its exchange's first."""
        self._live[candidate.provider.name] += 1
        self._extra += extra
        self._set(candidate, self._breaker(candidate).begun())

    def note_answer(self, *, extra: bool) -> None:
        """An attempt is being answered: it was worth it, and no longer counts."""
        self._extra -= extra

    def note_limit(self, candidate: Candidate, seconds: float) -> None:
        """The candidate's own limit is reached, for so long by its own account."""
        self._limited_until[_key(candidate)] = self.clock() + seconds

    def end(self, candidate: Candidate, result: AttemptResult, *, extra: bool) -> None:
        """An attempt has ended; ``extra`` as long as it has not been answered."""
        self._live[candidate.provider.name] -= 1
        self._extra -= extra
        breaker = self._breaker(candidate)
        if result in _FAILED:
            breaker = breaker.failed(self.clock(), self._rules.breaker)
        elif result is AttemptResult.CANCELLED:
            breaker = breaker.abandoned()
        else:
            breaker = breaker.answered()
        self._set(candidate, breaker)
        self._metrics.attempt(candidate.provider.name, result)

    def note_health(self, provider: str, *, is_up: bool) -> None:
        """What an active probe found."""
        (self._down.discard if is_up else self._down.add)(provider)
        self._metrics.provider_up.labels(provider).set(is_up)

    def _is_healthy(self, candidate: Candidate) -> bool:
        up = candidate.provider.name not in self._down
        return up and self._breaker(candidate).admits(self.clock())

    def _is_full(self, candidate: Candidate) -> bool:
        name = candidate.provider.name
        return self._live[name] >= self._rules.most.get(name, _UNBOUNDED)

    def _breaker(self, candidate: Candidate) -> Breaker:
        return self._breakers.get(_key(candidate), _CLOSED)

    def _set(self, candidate: Candidate, breaker: Breaker) -> None:
        if breaker == self._breaker(candidate):
            return
        self._breakers[_key(candidate)] = breaker
        name = candidate.provider.name
        is_open = any(
            one.is_open for key, one in self._breakers.items() if key[0] == name
        )
        self._metrics.breaker_open.labels(name).set(is_open)


_CLOSED = Breaker()


def _key(candidate: Candidate) -> _Key:
    return candidate.provider.name, candidate.model
