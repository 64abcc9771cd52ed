"""What the scripts answer; the header of each script says when (``lua/*.lua``)."""

from dataclasses import dataclass

import msgspec

from gateway.admission.ledger import (
    OpenReservation,
    Rate,
    RenewalState,
    Statement,
    Window,
)
from gateway.admission.scripts import Move, Script, load


class Answer(msgspec.Struct):
    """What every move answers."""

    status: str
    epoch: str = ""
    revoked: bool = False
    expired: int = 0
    released: int = 0
    now_s: int = 0


class RateAnswer(msgspec.Struct):
    """One per-minute limit."""

    limit: int
    remaining: int
    reset_us: int


def _rate(answer: RateAnswer | None) -> Rate | None:
    if answer is None:
        return None
    return Rate(answer.limit, answer.remaining, answer.reset_us / 1e6)


class Reserved(Answer):
    """Of ``reserve``."""

    day: str = ""
    month: str = ""
    since_ms: int = 0
    requests: RateAnswer | None = None
    tokens: RateAnswer | None = None
    limit: str = ""
    retry_after_us: int = 0
    should_retry: bool = True

    def rates(self) -> tuple[Rate | None, Rate | None]:
        """Requests and tokens per minute."""
        return (_rate(self.requests), _rate(self.tokens))


class Renewed(Answer):
    """Of ``renew``."""

    states: list[RenewalState] = []


class WindowAnswer(msgspec.Struct, frozen=True):
    """One calendar window; ``ends`` in Unix seconds."""

    used: int = 0
    held: int = 0
    ends: int = 0
    limit: int | None = None

    def window(self, name: str) -> Window:
        """As the port has it."""
        return Window(name, self.limit, self.used, self.held, self.ends * 1000)


class ReservationAnswer(msgspec.Struct):
    """One open reservation."""

    id: str
    model: str
    reserved: int
    progress: int
    age_ms: int


class Read(Answer):
    """Of ``read``."""

    day: WindowAnswer = WindowAnswer()
    month: WindowAnswer = WindowAnswer()
    requests: RateAnswer | None = None
    tokens: RateAnswer | None = None
    concurrency: int | None = None
    in_use: int = 0
    reservations: list[ReservationAnswer] = []

    def statement(self, principal: str) -> Statement:
        """As the port has it."""
        return Statement(
            principal=principal,
            revoked=self.revoked,
            windows=(self.day.window("day"), self.month.window("month")),
            requests=_rate(self.requests),
            tokens=_rate(self.tokens),
            concurrency_limit=self.concurrency,
            in_use=self.in_use,
            reservations=tuple(
                OpenReservation(r.id, r.model, r.reserved, r.progress, r.age_ms / 1000)
                for r in self.reservations
            ),
        )


@dataclass(frozen=True, slots=True)
class Question[A: Answer]:
    """A script and how its answers are read."""

    script: Script
    decoder: msgspec.json.Decoder[A]


def _question[A: Answer](move: Move, answer: type[A]) -> Question[A]:
    # Not strict: Lua writes tokens as strings, since its JSON keeps 14 digits.
    return Question(load(move), msgspec.json.Decoder(answer, strict=False))


SEED = _question(Move.SEED, Answer)
RESERVE = _question(Move.RESERVE, Reserved)
RENEW = _question(Move.RENEW, Renewed)
SETTLE = _question(Move.SETTLE, Answer)
RELEASE = _question(Move.RELEASE, Answer)
SWEEP = _question(Move.SWEEP, Answer)
READ = _question(Move.READ, Read)
