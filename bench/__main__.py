"""Measure, print and draw: ``python -m bench [--quick] [--targets nginx,gateway]``."""

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bench.report import table
from bench.runner import MAKERS, Plan, Results, measure
from bench.scenarios import SCENARIOS

_RESULTS = Path("bench/results")
_RIVALS = Path(".bench")


def main() -> None:
    options = _options().parse_args()
    if options.read:
        results = Results(**json.loads(options.read.read_text("utf-8")))
    else:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        results = measure(_plan(options), partial(_save, options.json))
    print(table(results))
    if options.plots:
        from bench.plots import draw  # noqa: PLC0415 - of the bench group only

        for path in draw(results, options.plots):
            print(path)


def _save(path: Path, results: Results) -> None:
    path.write_text(json.dumps(asdict(results), indent=1), "utf-8")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    scenarios = ",".join(scenario.name for scenario in SCENARIOS)
    add = parser.add_argument
    add("--quick", action="store_true", help="under 5 minutes, 3 rounds")
    add("--rounds", type=int, help="default: 5")
    add("--targets", default="nginx,gateway", help=f"of {','.join(MAKERS)}")
    add("--scenarios", default=scenarios, help=f"default: {scenarios}")
    add("--idle", type=int, default=2_000, help="streams of S4; default: 2000")
    add("--gateway-arguments", default="", help="more of them for gateway serve")
    add("--cache", type=Path, default=_RIVALS, help="where rivals are installed")
    add("--json", type=Path, default=_RESULTS / "latest.json", help="results go there")
    add("--read", type=Path, help="measure nothing, show these results")
    add("--plots", type=Path, help="directory for pictures; needs matplotlib")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        targets=tuple(options.targets.split(",")),
        scenarios=tuple(options.scenarios.split(",")),
        rounds=options.rounds or (3 if options.quick else 5),
        quick=options.quick,
        idle=options.idle,
        cache=options.cache.absolute(),
        arguments=tuple(options.gateway_arguments.split()),
    )


if __name__ == "__main__":
    main()
