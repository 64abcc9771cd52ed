"""Runs a module whose wall clock jumps: a day on at SIGUSR1, a day back at SIGUSR2.

    python jumping_clock.py MODULE [ARGUMENT ...]

Python's own ways to read it are replaced; the monotonic clock goes on, and so does that
of every other process.
"""

import datetime as dt
import runpy
import signal
import sys
import time
from types import FrameType
from typing import Self, override

DAY_SECONDS = 86_400
_JUMPS = {signal.SIGUSR1: DAY_SECONDS, signal.SIGUSR2: -DAY_SECONDS}

_real_time_ns = time.time_ns
_jumped_seconds = 0


def _jump(number: int, _: FrameType | None) -> None:
    global _jumped_seconds  # noqa: PLW0603 - the clock is the process's
    _jumped_seconds += _JUMPS[signal.Signals(number)]


def _time_ns() -> int:
    return _real_time_ns() + _jumped_seconds * 10**9


def _time() -> float:
    return _time_ns() / 1e9


class _Datetime(dt.datetime):
    @classmethod
    @override
    def now(cls, tz: dt.tzinfo | None = None) -> Self:
        return cls.fromtimestamp(_time(), tz)

    @classmethod
    @override
    def utcnow(cls) -> Self:
        return cls.now(dt.UTC).replace(tzinfo=None)


def _main(module: str, *arguments: str) -> None:
    time.time_ns, time.time = _time_ns, _time  # noqa: TID251 - nobody calls it here
    dt.datetime = _Datetime  # type: ignore[misc]
    for number in _JUMPS:
        signal.signal(number, _jump)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
