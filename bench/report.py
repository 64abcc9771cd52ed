"""The table: medians, their spread, and what they are to nginx in the same round."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from bench.runner import Results

type Series = Mapping[str, list[float]]
"""By target, one figure for each round."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        title: With the unit.
        figure: It shows.
        plus: Another figure that is added.
        over: Another figure it is divided by.
        less_direct: Whether what the provider alone has is taken off.
        to_nginx: Whether the ratio to nginx is of interest.
        goal: Of the gateway.
    """

    title: str
    figure: str
    plus: str = ""
    over: str = ""
    less_direct: bool = False
    to_nginx: bool = False
    goal: str = ""

    def values(self, figures: Mapping[str, Series], target: str) -> list[float]:
        """What a target has in each round; empty where it was not measured."""
        values = figures.get(self.figure, {}).get(target, [])
        if self.plus:
            more = figures.get(self.plus, {}).get(target, [])
            values = [a + b for a, b in zip(values, more, strict=False)]
        if self.over:
            below = figures.get(self.over, {}).get(target, [])
            values = [a / b for a, b in zip(values, below, strict=False)]
        if self.less_direct:
            direct = figures.get(self.figure, {}).get("direct", [])
            values = [a - b for a, b in zip(values, direct, strict=False)]
        return values


ROWS = (
    Row("S1, one fast stream: µs/chunk", "s1_us", to_nginx=True, goal="≤ 2.5 ×"),
    Row("S2, 200 paced streams: µs/chunk", "s2_us", to_nginx=True, goal="≤ 3.0 ×"),
    Row("S2b, added p50: ms", "s2b_p50_ms", less_direct=True, goal="≤ 0.2"),
    Row("S2b, added p99: ms", "s2b_p99_ms", less_direct=True, goal="≤ 2"),
    Row("S2b, first token added: ms", "s2b_first_ms", less_direct=True, goal="≤ 1.5"),
    Row("S3n, whole answer: µs/request", "s3n_us", to_nginx=True, goal="≤ 18 ×"),
    Row(
        "S3n with the Redis server's: µs/request",
        "s3n_us",
        plus="s3n_store_us",
        to_nginx=True,
    ),
    Row("S3, stream of one chunk: µs/request", "s3_us", to_nginx=True),
    Row(
        "S3 with the Redis server's: µs/request",
        "s3_us",
        plus="s3_store_us",
        to_nginx=True,
    ),
    Row("S4, idle stream: kB", "s4_kb", goal="≤ 32"),
    Row("S5, stuck reader: kB", "s5_kb", goal="≤ 256"),
    Row("S6, 2,000 streams: µs/chunk", "s6_2000_us"),
    Row("S6, to 200 streams", "s6_2000_us", over="s6_200_us", goal="≤ 1.2"),
    Row("S6, long stream to short", "s6_long_us", over="s6_short_us", goal="≤ 1.2"),
    Row("abort in mid-stream, p50: ms", "abort_stream_p50_ms", goal="≤ 1"),
    Row("abort in mid-stream, max: ms", "abort_stream_max_ms", goal="≤ 10"),
    Row("abort in a pause, p50: ms", "abort_pause_p50_ms", goal="≤ 1"),
    Row("abort in a pause, max: ms", "abort_pause_max_ms", goal="≤ 10"),
    Row("abort of a stuck reader, p50: ms", "abort_pressure_p50_ms", goal="≤ 1"),
    Row("abort of a stuck reader, max: ms", "abort_pressure_max_ms", goal="≤ 10"),
    Row("aborts not seen within 1 s, in mid-stream", "abort_stream_unseen", goal="0"),
    Row("… in a pause", "abort_pause_unseen", goal="0"),
    Row("… of stuck readers", "abort_pressure_unseen", goal="0"),
)


def names(results: Results) -> list[str]:
    """Of the targets, in the order they were measured; the provider is none."""
    seen = dict.fromkeys(name for by in results.figures.values() for name in by)
    return [name for name in seen if name != "direct"]


def table(results: Results) -> str:
    """The table in Markdown, with a line on the machine below."""
    failures = [f"- {pair}: {why}" for pair, why in results.failures.items()]
    return "\n".join([*_lines(results), "", caption(results), *failures])


def caption(results: Results) -> str:
    """What was measured where, and how often."""
    machine = results.machine
    rounds = max(
        (len(each) for by in results.figures.values() for each in by.values()),
        default=0,
    )
    beside = "".join(f", {name} {is_}" for name, is_ in machine["rivals"].items())
    return (
        f"Median [lowest–highest] of up to {rounds} rounds, × is to nginx in the same "
        f"round. Commit {machine['commit']}, {machine['when'][:10]}; {machine['cpu']}, "
        f"{machine['cores']} cores, Linux {machine['kernel']}, "
        f"Python {machine['python']}, nginx {machine['nginx']}{beside}."
    )


def _lines(results: Results) -> Iterator[str]:
    columns = names(results)
    yield f"| | {' | '.join(columns)} | target |"
    yield "| --- |" + " ---: |" * len(columns) + " --- |"
    for row in ROWS:
        cells = [_cell(row, results, name) for name in columns]
        if any(cells):
            yield f"| {row.title} | {' | '.join(cells)} | {row.goal} |"


def _cell(row: Row, results: Results, target: str) -> str:
    values = row.values(results.figures, target)
    if not values:
        return ""
    cell = f"{_short(median(values))}"
    if len(values) > 1:
        cell += f" [{_short(min(values))}–{_short(max(values))}]"
    base = row.values(results.figures, "nginx")
    if row.to_nginx and target != "nginx" and base:
        ratios = [a / b for a, b in zip(values, base, strict=False)]
        cell += f" **{median(ratios):.1f} ×**"
    return cell


def _short(value: float) -> str:
    """Three digits that say something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
