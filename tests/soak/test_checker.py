"""The checker finds what it is for, and nothing where nothing is wrong."""

from dataclasses import replace

import pytest

from tests.soak.history import (
    LATE_SECONDS,
    Charge,
    End,
    Exchange,
    History,
    Sample,
    charged_ahead,
    violations,
)

KEY = "alice"
PROMPT, ESTIMATE = 13, 17
BEGAN, ENDED = 100.0, 101.0


def exchange(end: End = End.COMPLETE, **others: object) -> Exchange:
    one = Exchange(
        id="one",
        key=KEY,
        stream=True,
        began=BEGAN,
        ended=ENDED,
        estimate=ESTIMATE,
        prompt=PROMPT,
        end=end,
        relayed=30,
        sent=40,
    )
    return replace(one, **others)  # type: ignore[arg-type] # tests name the fields


COMPLETE = exchange(relayed=40, reported=53, charged=53)
LEFT = exchange(End.LEFT)
REFUSED = exchange(End.REFUSED, code="rate_limit_exceeded", relayed=0, sent=0)
KILLED = exchange(End.BROKEN, killed=True)


def books(used: int, held: int = 0, in_use: int = 0, **limits: int) -> Sample:
    return Sample(BEGAN, KEY, used, held, in_use, **limits)


def history(*exchanges: Exchange, used: int, losses: tuple[float, ...] = ()) -> History:
    final = {KEY: books(used)}
    return History(list(exchanges), final=final, losses=list(losses))


def rules(recorded: History) -> list[str]:
    return [one.rule for one in violations(recorded)]


def test_nothing_is_found_when_all_is_right() -> None:
    recorded = history(COMPLETE, LEFT, REFUSED, KILLED, used=53 + 43 + 17 + 94)
    recorded.samples = [
        books(0, held=100, in_use=12, limit=100, concurrency=12),
        books(100, limit=100),
    ]
    assert rules(recorded) == []


@pytest.mark.parametrize(
    ("one", "cost"),
    [
        (COMPLETE, Charge(53, 53)),
        (replace(COMPLETE, stream=False), Charge(53, 53)),
        (LEFT, Charge(43, 57)),
        (replace(LEFT, relayed=0), Charge(0, 57)),
        (replace(LEFT, stream=False), Charge(0, 57)),
        (REFUSED, Charge(0, 0)),
        (exchange(End.CUT), Charge(43, 57)),
        (KILLED, Charge(43, 57 + 64)),
        (replace(KILLED, relayed=0), Charge(0, 57 + 64)),
        (replace(KILLED, stream=False), Charge(13, 57 + 64)),
        (replace(COMPLETE, killed=True), Charge(53, 57 + 64)),
    ],
)
def test_cost_is_what_the_table_says(one: Exchange, cost: Charge) -> None:
    assert one.cost() == cost


@pytest.mark.parametrize("one", [COMPLETE, LEFT, KILLED])
def test_settlement_that_is_lost_is_found(one: Exchange) -> None:
    least = replace(one, charged=None).cost().least
    assert rules(history(one, used=least)) == []
    assert rules(history(one, used=least - 1)) == ["lost"]


@pytest.mark.parametrize("one", [COMPLETE, LEFT, KILLED, REFUSED])
def test_settlement_that_is_doubled_is_found(one: Exchange) -> None:
    most = replace(one, charged=None).cost().most
    assert rules(history(one, used=most)) == []
    assert rules(history(one, used=most + 1)) == ["doubled"]


def test_tokens_ahead_are_those_of_killed_streams_whose_client_had_stayed() -> None:
    charged = ESTIMATE + 30 + 64
    killed = replace(KILLED, charged=charged)
    left = replace(killed, end=End.LEFT)
    unheard = replace(killed, relayed=0)
    recorded = history(killed, left, unheard, replace(killed, stream=False), used=0)
    assert charged_ahead(recorded) == [64]


def test_charge_of_one_exchange_is_compared_though_the_sum_is_right() -> None:
    recorded = history(
        replace(COMPLETE, charged=52), replace(COMPLETE, charged=54), used=106
    )
    assert rules(recorded) == ["lost", "doubled"]


def test_key_without_books_is_found() -> None:
    assert rules(History([COMPLETE])) == ["lost"]


@pytest.mark.parametrize(
    "sample",
    [
        books(51, held=50, limit=100),
        books(101, limit=100),
        books(0, in_use=13, concurrency=12),
    ],
)
def test_overshoot_is_found_when_one_sample_shows_it(sample: Sample) -> None:
    recorded = history(COMPLETE, used=53)
    recorded.samples = [sample]
    assert rules(recorded) == ["overshoot"]


@pytest.mark.parametrize("sample", [books(-1), books(0, held=-1), books(0, in_use=-1)])
def test_figure_below_zero_is_found(sample: Sample) -> None:
    recorded = history(COMPLETE, used=53)
    recorded.samples = [sample]
    assert rules(recorded) == ["negative"]


@pytest.mark.parametrize("last", [books(53, held=1), books(53, in_use=1)])
def test_hold_that_stays_after_quiet_is_found(last: Sample) -> None:
    recorded = history(COMPLETE, used=53)
    recorded.final = {KEY: last}
    assert rules(recorded) == ["held"]


def test_answer_that_was_cut_is_found() -> None:
    cut, broken = exchange(End.CUT), replace(KILLED, killed=False)
    assert rules(history(cut, used=43)) == ["cut"]
    assert rules(history(broken, used=43)) == ["cut"]


def test_tokens_nobody_sent_are_found() -> None:
    invented = replace(COMPLETE, relayed=41)
    assert rules(history(invented, used=53)) == ["invented"]


def test_usage_that_is_not_what_was_sent_is_found() -> None:
    misreported = replace(COMPLETE, reported=54)
    assert rules(history(misreported, used=53)) == ["misreport"]


def test_charges_before_a_loss_may_be_gone_but_those_after_it_may_not() -> None:
    before = replace(COMPLETE, charged=None)
    loss = ENDED + LATE_SECONDS + 1
    after = replace(before, id="two", began=loss + 1, ended=loss + 2)
    assert rules(history(before, after, used=53, losses=(loss,))) == []
    assert rules(history(before, after, used=52, losses=(loss,))) == ["lost"]


def test_charge_from_before_a_loss_is_doubled_when_it_comes_back_after_it() -> None:
    before = replace(COMPLETE, charged=None)
    loss = ENDED + LATE_SECONDS + 1
    assert rules(history(before, used=53, losses=(loss,))) == ["doubled"]


def test_exchange_that_lives_through_a_loss_may_be_charged_once() -> None:
    loss = (BEGAN + ENDED) / 2
    alive = replace(COMPLETE, charged=0)
    assert rules(history(alive, used=0, losses=(loss,))) == []
    assert rules(history(alive, used=53, losses=(loss,))) == []
    assert rules(history(alive, used=54, losses=(loss,))) == ["doubled"]


def test_loss_grants_one_extra_window_and_no_more() -> None:
    recorded = history(COMPLETE, used=53)
    recorded.losses = [BEGAN - LATE_SECONDS * 2]
    recorded.samples = [books(100, held=100, limit=100)]
    assert rules(recorded) == []
    recorded.samples = [books(100, held=101, limit=100)]
    assert rules(recorded) == ["overshoot"]
