import json
import re
from dataclasses import asdict

from bench.report import ROWS, table
from bench.runner import Results
from bench.scenarios import PACES, Measured
from bench.wire import Pace

MACHINE = {
    "when": "2026-11-23T10:00:00+00:00",
    "commit": "0123456789ab",
    "quick": True,
    "kernel": "6.1",
    "cpu": "a CPU",
    "cores": 2,
    "python": "3.13",
    "nginx": "1.22",
    "rivals": {"litellm": "1.0"},
}


def results(**rounds: list[dict[str, float]]) -> Results:
    """By target the figures of each round."""
    made = Results(MACHINE)
    for target, figures in rounds.items():
        for each in figures:
            made.add(target, Measured(each))
    return made


def cells(made: Results, title: str) -> list[str]:
    """Of one line of the table, without its title."""
    lines = [line for line in table(made).splitlines() if line.startswith(f"| {title}")]
    assert len(lines) == 1
    return [cell.strip() for cell in lines[0].split("|")[2:-1]]


def test_table_has_median_spread_and_ratio_when_there_are_rounds() -> None:
    made = results(
        nginx=[{"s2_us": 10}, {"s2_us": 40}, {"s2_us": 20}],
        gateway=[{"s2_us": 30}, {"s2_us": 80}, {"s2_us": 50}],
    )
    # Ratios are of one round each: 3, 2 and 2.5, not 50 to 20.
    assert cells(made, "S2, ") == [
        "20.0 [10.0–40.0]",
        "50.0 [30.0–80.0] **2.5 ×**",
        "≤ 3.0 ×",
    ]


def test_table_takes_the_provider_off_when_latency_is_meant() -> None:
    made = results(direct=[{"s2b_p50_ms": 0.1}], gateway=[{"s2b_p50_ms": 0.35}])
    assert cells(made, "S2b, added p50") == ["0.25", "≤ 0.2"]


def test_table_adds_the_store_and_divides_growth_when_they_are_measured() -> None:
    made = results(
        gateway=[
            {"s3n_us": 600, "s3n_store_us": 150, "s6_200_us": 40, "s6_2000_us": 50}
        ]
    )
    assert cells(made, "S3n, ") == ["600", "≤ 18 ×"]
    assert cells(made, "S3n with") == ["750", ""]
    assert cells(made, "S6, to 200") == ["1.25", "≤ 1.2"]


def test_table_leaves_a_cell_empty_when_a_target_has_failed() -> None:
    made = results(nginx=[{"s1_us": 1}], portkey=[{"s2_us": 9}])
    made.failures["portkey s1"] = "AnswerBroken: 4 chunks of 5"
    assert cells(made, "S1, ") == ["1.00", "", "≤ 2.5 ×"]
    assert table(made).endswith("- portkey s1: AnswerBroken: 4 chunks of 5")


def test_table_is_the_same_when_results_come_from_a_file() -> None:
    made = results(nginx=[{"s1_us": 1}], gateway=[{"s1_us": 3}])
    assert table(Results(**json.loads(json.dumps(asdict(made))))) == table(made)


def test_every_figure_has_a_name_that_says_its_unit() -> None:
    figures = {row.figure for row in ROWS}
    assert [f for f in figures if not re.search(r"_(us|ms|kb|unseen)$", f)] == []


def test_every_pace_is_the_same_when_read_from_its_name() -> None:
    assert [Pace.of(pace.model) for pace in PACES] == list(PACES)
