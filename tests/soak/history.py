"""What is recorded of a run, and the checker that proves the books right from it.

A history has three witnesses, none of whom knows the others::

    clients    what each exchange got, and how it ended       Exchange
    provider   how many tokens it sent for each request id    Exchange.sent
    store      the books, sampled over time, and at the end   Sample

``violations`` returns everything in it that must not be; an empty list is the proof.
Without a loss of the store's data, for any number of gateways:

========== ====================================================================
overshoot  ``used + held ≤ limit`` and ``in use ≤ concurrency`` at every sample
negative   no figure is ever below zero
lost       what a key was charged is at least what its exchanges must cost
doubled    and at most what they may cost
held       nothing is held after quiet
cut        no answer was cut by the store or by us, or broken but by a kill
invented   no client got more than the provider sent
misreport  the usage a client was told is what the provider sent
========== ====================================================================

``lost`` and ``doubled`` hold for each key, and for each exchange whose own charge is
known: those of a key that has one exchange at a time.

Losing the store's data begins an *epoch*. The promise is then "may grant one extra
window": held is bounded by ``limit`` times one more than the losses, and the charges of
the last epoch lie between what the exchanges that began in it must cost and what those
that still went on when it began, or began later, may cost.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

LEAST_ALLOWANCE = 64


class End(StrEnum):
    """How an exchange ended, as its client saw it."""

    COMPLETE = "complete"  # all of the answer came
    LEFT = "left"  # the client left
    REFUSED = "refused"  # a status that is not 200
    CUT = "cut"  # an error frame instead of the end
    BROKEN = "broken"  # the connection was lost: its gateway was killed


@dataclass(frozen=True, slots=True)
class Charge:
    """Between what and what an exchange may be charged, in tokens."""

    least: int
    most: int

    def allows(self, tokens: int) -> bool:
        """Whether that charge is right."""
        return self.least <= tokens <= self.most


@dataclass(slots=True)
class Exchange:
    """One request, as its client and the provider saw it.

    Attributes:
        id: The ``x-request-id``.
        key: Who pays.
        stream: Whether events were asked for.
        began, ended: Monotonic seconds.
        end: How it ended.
        code: Of the error, empty without one.
        relayed: Completion tokens the client got.
        reported: Total tokens of the final usage the client got; None without.
        sent: Completion tokens the provider sent, over all attempts.
        estimate: Prompt tokens the gateway reserves.
        prompt: Prompt tokens the provider reports.
        killed: Whether its gateway was killed while it went on or was being settled.
        allowance: Most tokens the gateway may have written ahead: page 04's A.
        charged: What it was charged, where that is known.
    """

    id: str
    key: str
    stream: bool
    began: float
    estimate: int
    prompt: int
    ended: float = 0.0
    end: End = End.BROKEN
    code: str = ""
    relayed: int = 0
    reported: int | None = None
    sent: int = 0
    killed: bool = False
    allowance: int = LEAST_ALLOWANCE
    charged: int | None = None

    def cost(self) -> Charge:
        """What it may be charged, once, in a store that keeps its data.

        ========= ====== ========================= ============================
        end       mode   least                     most
        ========= ====== ========================= ============================
        complete  both   prompt + sent             the same
        left      stream relayed: prompt + relayed prompt or estimate + sent
        left      json   0                         prompt or estimate + sent
        refused   both   0                         0
        cut       stream prompt + relayed          prompt + sent
        killed    stream relayed: prompt + relayed prompt or estimate + sent + A
        killed    json   0, or if whole the prompt prompt or estimate + sent + A
        ========= ====== ========================= ============================

        Where a client got nothing at all, the least is always 0.
        """
        low, high = sorted((self.prompt, self.estimate))
        if self.killed:
            seen = self.relayed if self.stream else 0
            least = low + seen if self.relayed else 0
            return Charge(least, high + self.sent + self.allowance)
        match self.end:
            case End.COMPLETE:
                return Charge(self.prompt + self.sent, self.prompt + self.sent)
            case End.REFUSED:
                return Charge(0, 0)
            case End.LEFT if not self.stream:
                return Charge(0, high + self.sent)
            case End.LEFT | End.CUT | End.BROKEN:
                least = low + self.relayed if self.relayed else 0
                return Charge(least, high + self.sent)


@dataclass(frozen=True, slots=True)
class Sample:
    """One key's books at one moment, all from one call; ``None`` is unlimited."""

    at: float
    key: str
    used: int
    held: int
    in_use: int
    limit: int | None = None
    concurrency: int | None = None


@dataclass(slots=True)
class History:
    """A run.

    Attributes:
        exchanges: All of them.
        samples: In the order they were taken.
        final: The books of each key, after quiet.
        losses: When the store lost its data, monotonic seconds.
    """

    exchanges: list[Exchange] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    final: dict[str, Sample] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be."""

    rule: str
    about: str
    text: str


LATE_SECONDS = 10.0
"""After the end of an exchange its settlement may still be under way: the store was
stopped, or a lease has to run out."""


def violations(history: History) -> list[Violation]:
    """Everything in the history that must not be; see the module."""
    return [
        *_sampled(history),
        *_cut(history.exchanges),
        *_unsound(history.exchanges),
        *_charged_each(history),
        *_charged_together(history),
        *_held(history.final),
    ]


def charged_ahead(history: History) -> list[int]:
    """Of each stream of a killed gateway: tokens charged beyond what its client got."""
    return [
        one.charged - one.estimate - one.relayed
        for one in history.exchanges
        if one.charged is not None
        and (one.end, one.stream) == (End.BROKEN, True)
        and one.relayed
        and not _is_near(one, history.losses)
    ]


def _sampled(history: History) -> Iterator[Violation]:
    windows = 1 + len(history.losses)
    for one in (*history.samples, *history.final.values()):
        seen = f"used {one.used}, held {one.held}, in use {one.in_use}"
        if min(one.used, one.held, one.in_use) < 0:
            yield Violation("negative", one.key, seen)
        if one.limit is not None and one.used + one.held > one.limit * windows:
            yield Violation("overshoot", one.key, f"{seen} of {one.limit}")
        many = one.concurrency
        if many is not None and one.in_use > many * windows:
            yield Violation("overshoot", one.key, f"{seen} of {many} at a time")


def _cut(exchanges: Iterable[Exchange]) -> Iterator[Violation]:
    for one in exchanges:
        broken = one.end is End.BROKEN and not one.killed
        if broken or one.end is End.CUT:
            yield Violation("cut", one.id, one.code or one.end)


def _unsound(exchanges: Iterable[Exchange]) -> Iterator[Violation]:
    """Clients got what was sent, and were told what it cost."""
    for one in exchanges:
        if one.relayed > one.sent:
            text = f"relayed {one.relayed}, sent {one.sent}"
            yield Violation("invented", one.id, text)
        if one.reported is not None and one.reported != one.prompt + one.sent:
            text = f"reported {one.reported}, sent {one.sent}"
            yield Violation("misreport", one.id, text)


def _charged_each(history: History) -> Iterator[Violation]:
    for one in history.exchanges:
        if one.charged is not None and not _is_near(one, history.losses):
            yield from _compared(one.id, one.charged, one.cost(), str(one))


def _charged_together(history: History) -> Iterator[Violation]:
    for key, exchanges in _by_key(history.exchanges).items():
        if (last := history.final.get(key)) is None:
            yield Violation("lost", key, "no books at the end")
            continue
        epoch = history.losses[-1] if history.losses else None
        cost = _sum(exchanges, epoch)
        yield from _compared(key, last.used, cost, f"{len(exchanges)} exchanges")


def _compared(about: str, charged: int, cost: Charge, text: str) -> Iterator[Violation]:
    figures = f"charged {charged}, of {cost.least} to {cost.most}: {text}"
    if charged < cost.least:
        yield Violation("lost", about, figures)
    if charged > cost.most:
        yield Violation("doubled", about, figures)


def _sum(exchanges: Iterable[Exchange], epoch: float | None) -> Charge:
    """What they may cost together in the epoch that began then."""
    least = most = 0
    for one in exchanges:
        cost = one.cost()
        if epoch is None or one.began > epoch:
            least += cost.least
        if epoch is None or one.ended > epoch - LATE_SECONDS:
            most += cost.most
    return Charge(least, most)


def _is_near(one: Exchange, losses: Iterable[float]) -> bool:
    """Whether a loss may have taken part of its charge, or brought another's late."""
    since, until = one.began - LATE_SECONDS, one.ended + LATE_SECONDS
    return any(since <= loss <= until for loss in losses)


def _held(final: Mapping[str, Sample]) -> Iterator[Violation]:
    for one in final.values():
        if one.held or one.in_use:
            text = f"held {one.held}, in use {one.in_use}"
            yield Violation("held", one.key, text)


def _by_key(exchanges: Sequence[Exchange]) -> Mapping[str, list[Exchange]]:
    found: defaultdict[str, list[Exchange]] = defaultdict(list)
    for one in exchanges:
        found[one.key].append(one)
    return found
