from collections import Counter
from collections.abc import Sequence

import pytest

from gateway.routing.affinity import most_live, preference

SESSIONS = [f"session-{number}" for number in range(3000)]
WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0}


def first(session: str, weights: dict[str, float]) -> str:
    return max(weights, key=lambda name: preference(session, name, weights[name]))


def winners(sessions: Sequence[str], weights: dict[str, float]) -> list[str]:
    return [first(session, weights) for session in sessions]


def test_candidates_win_as_often_as_their_weights_say() -> None:
    won = Counter(winners(SESSIONS, WEIGHTS))
    shares = {name: won[name] / len(SESSIONS) for name in WEIGHTS}
    assert shares == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5}, abs=0.03)


def test_only_its_own_sessions_move_when_a_candidate_goes() -> None:
    left = {name: weight for name, weight in WEIGHTS.items() if name != "b"}
    before, after = winners(SESSIONS, WEIGHTS), winners(SESSIONS, left)
    moved = {old for old, new in zip(before, after, strict=True) if old != new}
    assert moved == {"b"}


def test_only_sessions_to_the_heavier_candidate_move_when_its_weight_grows() -> None:
    before = winners(SESSIONS, WEIGHTS)
    after = winners(SESSIONS, {**WEIGHTS, "a": 3.0})
    gained = {new for old, new in zip(before, after, strict=True) if old != new}
    assert gained == {"a"}


def test_preference_is_the_same_in_every_process() -> None:
    assert preference("s", "vllm/m", 1.0) == pytest.approx(0.7324598750625609)


def test_any_text_can_name_a_session() -> None:
    assert preference("\ud800\x00é", "a", 1.0) > 0


@pytest.mark.parametrize(
    ("total", "share", "max_load", "most"),
    [(0, 0.5, 1.25, 1.0), (7, 0.5, 1.25, 5.0), (7, 0.5, 1.0, 4.0), (99, 0.1, 2.0, 20)],
)
def test_load_is_bounded_by_the_share_of_all(
    total: int, share: float, max_load: float, most: float
) -> None:
    assert most_live(total, share, max_load) == pytest.approx(most)
