"""When a draining process may go: times in, decisions out."""

import pytest

from gateway.drain import Drain, DrainStep

BEGUN = 100.0
DRAIN = 25.0
END = 3.0


@pytest.mark.parametrize(
    ("live", "after", "step"),
    [
        (0, 0.0, DrainStep.GO),
        (1, 0.0, DrainStep.WAIT),
        (1, DRAIN - 0.001, DrainStep.WAIT),
        (0, DRAIN - 0.001, DrainStep.GO),
        (1, DRAIN, DrainStep.END),
        (1, DRAIN + END - 0.001, DrainStep.END),
        (0, DRAIN, DrainStep.GO),
        (1, DRAIN + END, DrainStep.GO),
        (1, DRAIN + END + 1000, DrainStep.GO),
    ],
)
def test_drain_decides_by_the_time_and_who_is_left(
    live: int, after: float, step: DrainStep
) -> None:
    assert Drain(DRAIN, END, BEGUN).step(live, BEGUN + after) is step


def test_drain_ends_at_once_when_it_may_take_no_time() -> None:
    drain = Drain(0.0, END, BEGUN)
    assert drain.step(1, BEGUN) is DrainStep.END
    assert drain.step(0, BEGUN) is DrainStep.GO
