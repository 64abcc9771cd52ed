"""Measure and print: ``python -m bench [--rounds N] [--only direct,nginx,gateway]``."""

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import anyio

from bench.load import Load, drive
from bench.targets import LOAD_CORE, Target, gateway, nginx, provider

LOADS = {
    "S1 one fast stream, µs/chunk": Load(
        "sim-r0-t20000-f0", stream=True, concurrency=1, requests=1, chunks=5000
    ),
    "S2 200 paced streams, µs/chunk": Load(
        "sim-r100-t200-f0", stream=True, concurrency=200, requests=1, chunks=90
    ),
    "S3n json of 20 tokens, µs/request": Load(
        "sim-r0-t20-f0", stream=False, concurrency=32, requests=40, chunks=0
    ),
    "S3 stream of 1 chunk, µs/request": Load(
        "sim-r0-t1-f0", stream=True, concurrency=32, requests=40, chunks=1
    ),
}


def main() -> None:
    options = _options()
    os.sched_setaffinity(0, {LOAD_CORE})
    costs: dict[str, dict[str, list[float]]] = {name: {} for name in LOADS}
    with ExitStack() as stack:
        targets = list(_targets(stack, options.only.split(",")))
        for target in targets:
            _warm_up(target)
        for _ in range(options.rounds):
            for name, load in LOADS.items():
                for target in targets:
                    cost = _measure(target, load)
                    costs[name].setdefault(target.name, []).append(cost)
    _print(costs)
    if options.json:
        _write(options.json, costs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="nginx,gateway")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _targets(stack: ExitStack, wanted: list[str]) -> Iterator[Target]:
    upstream = stack.enter_context(provider())
    makers: dict[str, Callable[[], Target]] = {
        "direct": lambda: upstream,
        "nginx": lambda: stack.enter_context(nginx(upstream)),
        "gateway": lambda: stack.enter_context(gateway(upstream)),
    }
    for name in wanted:
        try:
            yield makers[name]()
        except FileNotFoundError as error:
            print(f"{name} is left out: {error}")


def _warm_up(target: Target) -> None:
    for load in LOADS.values():
        small = Load(load.model, load.stream, min(load.concurrency, 8), 1, load.chunks)
        anyio.run(drive, "127.0.0.1", target.port, target.key, small)


def _measure(target: Target, load: Load) -> float:
    """CPU of the target in µs per chunk, or per answer where those are short."""
    before = target.cpu_seconds()
    seen = anyio.run(drive, "127.0.0.1", target.port, target.key, load)
    spent = target.cpu_seconds() - before
    per_answer = seen.chunks < 10 * seen.answers
    return spent * 1e6 / (seen.answers if per_answer else seen.chunks)


def _print(costs: dict[str, dict[str, list[float]]]) -> None:
    for name, by_target in costs.items():
        cells = []
        base = median(by_target["nginx"]) if "nginx" in by_target else None
        for target, runs in by_target.items():
            middle = median(runs)
            ratio = f" ({middle / base:.1f} × nginx)" if base else ""
            spread = f"{min(runs):.1f}–{max(runs):.1f}"
            cells.append(f"{target} {middle:.1f} [{spread}]{ratio}")
        print(f"{name:36s} {'   '.join(cells)}")


def _write(path: Path, costs: dict[str, dict[str, list[float]]]) -> None:
    machine = {"python": platform.python_version(), "machine": platform.platform()}
    document = {"machine": machine, "costs": costs}
    path.write_text(json.dumps(document, indent=2), "utf-8")


if __name__ == "__main__":
    if shutil.which("taskset") is None:
        sys.exit("taskset is needed to pin processes to cores")
    main()
