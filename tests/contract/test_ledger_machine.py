"""Random moves on Redis and on the model: they must agree on every answer.

Two gateways work on the same books. The model's clock stands still, and rates are so
slow that the store's own clock gives back no whole token within ``YOUNG_SECONDS``.
"""

import itertools
import os
from collections.abc import Callable, Coroutine, Iterator
from copy import replace
from dataclasses import dataclass
from time import monotonic
from typing import Any

import pytest
import redis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from gateway.admission.ledger import (
    Grant,
    Hold,
    Ledger,
    Rate,
    Refused,
    Renewal,
    SettleResult,
    Statement,
    Usage,
)
from gateway.admission.redis_ledger import RedisLedger
from gateway.auth.principal import Limits, Principal
from streaming.errors import Fault
from tests.contract.model_ledger import Books, ModelLedger
from tests.contract.raw_books import RawBooks

YOUNG_SECONDS = 0.9
LIMITS = Limits(
    requests_per_minute=12,  # one in 5 s
    tokens_per_minute=60,  # one a second
    concurrency=4,
    tokens_per_day=80,
    tokens_per_month=100,
)
TOKENS = st.integers(0, 15)
GATEWAYS = st.sampled_from([0, 1])

type Move = Callable[[Ledger, Grant], Coroutine[Any, Any, object]]

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Granted:
    """One reservation, as the store and as the model granted it."""

    by_store: Grant
    by_model: Grant


@dataclass
class Fleet:
    """Two gateways, one whose leases run out at once, and a look into the store."""

    portal: BlockingPortal
    gateways: tuple[Ledger, Ledger]
    lapsing: Ledger
    client: redis.Redis


@pytest.fixture
def fleet(store_url: str) -> Iterator[Fleet]:
    ledgers = RedisLedger(store_url), RedisLedger(store_url)
    lapsing = RedisLedger(store_url, lease_seconds=-1)
    with (
        start_blocking_portal() as portal,
        redis.Redis.from_url(store_url) as client,
        portal.wrap_async_context_manager(ledgers[0]),
        portal.wrap_async_context_manager(ledgers[1]),
        portal.wrap_async_context_manager(lapsing),
    ):
        yield Fleet(portal, ledgers, lapsing, client)


async def answer_of(call: Coroutine[Any, Any, object]) -> object:
    """What was answered; a fault is told by its class, limit and advice."""
    try:
        return await call
    except Fault as fault:
        cause = fault.__cause__
        limit = cause.limit if isinstance(cause, Refused) else None
        return type(fault), limit, fault.should_retry


class LedgerMachine(RuleBasedStateMachine):
    live: Bundle[Granted] = Bundle("live")  # held, or swept: their end still counts
    over: Bundle[Granted] = Bundle("over")  # settled or released, for good

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self.fleet = fleet
        books = Books(clock=lambda: 1_795_000_000.0)
        self.model = ModelLedger(books)
        self.model_lapsing = ModelLedger(books, lease_seconds=-1)
        self.key = f"machine-{os.getpid()}-{next(_numbers)}"
        self.raw = RawBooks(fleet.client, self.key)
        self.started = monotonic()
        self.limits = LIMITS
        self.seed()

    def seed(self) -> None:
        principal = Principal(self.key, "digest", limits=self.limits)
        for ledger in (*self.fleet.gateways, self.model):
            self.fleet.portal.call(ledger.seed, [principal])

    def is_young(self) -> bool:
        return monotonic() - self.started < YOUNG_SECONDS

    def agree(
        self, gateway: int, call: Callable[[Ledger], Coroutine[Any, Any, object]]
    ) -> object:
        """Ask a gateway and the model; they must answer alike."""
        store = self.fleet.portal.call(answer_of, call(self.fleet.gateways[gateway]))
        model = self.fleet.portal.call(answer_of, call(self.model))
        assert store == model
        return store

    def agree_on(self, granted: Granted, gateway: int, move: Move) -> object:
        ledger = self.fleet.gateways[gateway]
        store = self.fleet.portal.call(move, ledger, granted.by_store)
        model = self.fleet.portal.call(move, self.model, granted.by_model)
        assert store == model
        return store

    @rule(
        target=live,
        gateway=GATEWAYS,
        prompt=TOKENS,
        most=TOKENS,
        stream=st.booleans(),
        is_swept=st.booleans(),
    )
    def reserve(
        self, gateway: int, prompt: int, most: int, stream: bool, is_swept: bool
    ) -> Granted | MultipleResults[Granted]:
        if not self.is_young():
            return multiple()
        name = f"m{os.getpid()}x{next(_numbers)}"
        hold = Hold(name, self.key, "chat-small", prompt, most, stream)
        if is_swept:
            self.sweep(gateway)
        before = self.raw.contents()
        call = self.fleet.portal.call
        store = call(answer_of, self.fleet.gateways[gateway].reserve(hold))
        model = call(answer_of, self.model.reserve(hold))
        if isinstance(store, Grant) and isinstance(model, Grant):
            assert store.hold == model.hold
            self.is_within_limits()
            return Granted(store, model)
        assert store == model
        assert self.raw.is_still(before) or not is_swept
        return multiple()

    def is_within_limits(self) -> None:
        for name, (used, held) in self.raw.windows().items():
            limits = self.limits
            limit = (
                limits.tokens_per_day if ":day:" in name else limits.tokens_per_month
            )
            assert limit is None or used + held <= limit

    @rule(granted=live, gateway=GATEWAYS)
    def reserve_again(self, granted: Granted, gateway: int) -> None:
        async def again(ledger: Ledger, grant: Grant) -> object:
            answer = await answer_of(ledger.reserve(grant.hold))
            return answer.hold if isinstance(answer, Grant) else answer

        self.agree_on(granted, gateway, again)

    @rule(
        granted=live,
        gateway=GATEWAYS,
        allowed=st.integers(0, 99),
        dispatched=st.booleans(),
        progress=TOKENS,
    )
    def renew(
        self,
        granted: Granted,
        gateway: int,
        allowed: int,
        dispatched: bool,
        progress: int,
    ) -> None:
        async def renewed(ledger: Ledger, grant: Grant) -> object:
            return list(
                await ledger.renew([Renewal(grant, allowed, dispatched, progress)])
            )

        self.agree_on(granted, gateway, renewed)

    @rule(granted=live, allowed=st.integers(0, 99), dispatched=st.booleans())
    def lapse(self, granted: Granted, allowed: int, dispatched: bool) -> None:
        call = self.fleet.portal.call
        for ledger, grant in (
            (self.fleet.lapsing, granted.by_store),
            (self.model_lapsing, granted.by_model),
        ):
            call(ledger.renew, [Renewal(grant, allowed, dispatched)])

    @rule(target=over, granted=consumes(live), gateway=GATEWAYS, used=TOKENS)
    def settle(self, granted: Granted, gateway: int, used: int) -> Granted:
        async def settled(ledger: Ledger, grant: Grant) -> object:
            return await ledger.settle(grant, Usage(used, 3))

        result = self.agree_on(granted, gateway, settled)
        assert result in {SettleResult.SETTLED, SettleResult.LATE}
        return granted

    @rule(target=over, granted=consumes(live), gateway=GATEWAYS)
    def release(self, granted: Granted, gateway: int) -> Granted:
        async def released(ledger: Ledger, grant: Grant) -> object:
            return await ledger.release(grant)

        result = self.agree_on(granted, gateway, released)
        assert result in {SettleResult.RELEASED, SettleResult.LATE}
        return granted

    @rule(granted=over, gateway=GATEWAYS, settle=st.booleans())
    def end_again(self, granted: Granted, gateway: int, settle: bool) -> None:
        self.sweep(gateway)
        before = self.raw.contents()
        ledger = self.fleet.gateways[gateway]
        again = (
            ledger.settle(granted.by_store, Usage(5, 5))
            if settle
            else ledger.release(granted.by_store)
        )
        assert self.fleet.portal.call(answer_of, again) is SettleResult.DUPLICATE
        assert self.raw.is_still(before)

    @rule(gateway=GATEWAYS)
    def sweep(self, gateway: int) -> None:
        self.agree(gateway, lambda ledger: ledger.sweep(self.key))

    @rule(gateway=GATEWAYS)
    def read(self, gateway: int) -> None:
        async def told(ledger: Ledger) -> object:
            return self.gist(await ledger.read(self.key))

        self.agree(gateway, told)

    def gist(self, statement: Statement) -> object:
        """All of a statement but ages and resets; rates only while they stand still."""
        bare = replace(
            statement,
            windows=tuple(replace(one, resets_at_ms=0) for one in statement.windows),
            reservations=tuple(
                sorted(
                    (replace(one, age_seconds=0.0) for one in statement.reservations),
                    key=lambda one: one.id,
                )
            ),
        )
        if not self.is_young():
            return replace(bare, requests=None, tokens=None)
        return replace(bare, requests=_still(bare.requests), tokens=_still(bare.tokens))

    @rule(gateway=GATEWAYS)
    def revoke(self, gateway: int) -> None:
        self.agree(gateway, lambda ledger: ledger.revoke(self.key))

    @rule(gateway=GATEWAYS)
    def restore(self, gateway: int) -> None:
        self.agree(gateway, lambda ledger: ledger.restore(self.key))

    @rule(day=st.sampled_from([None, 40, 80]), most=st.sampled_from([None, 2, 4]))
    def limit(self, day: int | None, most: int | None) -> None:
        self.limits = replace(self.limits, tokens_per_day=day, concurrency=most)
        self.seed()

    @invariant()
    def is_never_negative(self) -> None:
        assert all(
            used >= 0 and held >= 0 for used, held in self.raw.windows().values()
        )

    @invariant()
    def does_not_stay_forever(self) -> None:
        assert self.raw.without_ttl() == []


def _still(rate: Rate | None) -> Rate | None:
    return rate and replace(rate, reset_seconds=0.0)


def test_redis_agrees_with_the_model_on_random_moves(fleet: Fleet) -> None:
    class Machine(LedgerMachine):
        def __init__(self) -> None:
            super().__init__(fleet)

    # Not shrunk: that takes minutes, and moves are told one by one as it is.
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40, stateful_step_count=30, phases=[Phase.generate]
        ),
    )
