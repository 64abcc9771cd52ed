"""The scenarios: one load each, and the figures that it gives."""

import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from statistics import median, quantiles
from typing import Any

import anyio

from bench.load import Crowd, Load, Seen, ask
from bench.processes import TICK_SECONDS
from bench.targets import Target
from bench.wire import FIFTY_MB, IDLE, Pace

_STEADY = Pace(100, 20)
_FAST = Pace(20_000)
_TWENTY = Pace(20)
_ONE = Pace(1)
_OFTEN, _SELDOM = Pace(3_000, 20), Pace(300, 200)
_SHORT, _LONG, _LONGISH = Pace(200, 1), Pace(20_000, 1), Pace(2_000, 1)
PACES = (
    *(_STEADY, _FAST, _TWENTY, _ONE, _OFTEN, _SELDOM),
    *(_SHORT, _LONG, _LONGISH, IDLE, FIFTY_MB),
)
_CALM_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Size:
    """How long to measure.

    Attributes:
        cpu_seconds: Of the target, at least, in each interval; a load is repeated.
        longest_seconds: After which it is not repeated any more.
        idle: Streams of S4.
        window_seconds: Of S6.
        leavers: Clients of each kind that leave.
        long: The long stream of S6.
    """

    cpu_seconds: float = 1.0
    longest_seconds: float = 20.0
    idle: int = 2_000
    window_seconds: float = 5.0
    leavers: int = 100
    long: Pace = _LONG


QUICK = Size(0.3, 4.0, window_seconds=2.5, leavers=25, long=_LONGISH)
FULL = Size()


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run of a scenario gave.

    Attributes:
        figures: By name, with the unit in it.
        delays_ms: Per-mille quantiles of a chunk's delay, 999 of them.
    """

    figures: dict[str, float]
    delays_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One of them.

    Attributes:
        name: On the command line.
        run: Measures a warm target.
        direct: Whether the provider alone is measured too.
        fresh: Whether the target must be new: of memory only the first rise counts.
        slow: Whether the short form measures it once only.
    """

    name: str
    run: Callable[[Target, Size], Coroutine[Any, Any, Measured]]
    direct: bool = False
    fresh: bool = False
    slow: bool = False


async def warm_up(target: Target) -> None:
    """Some hundred requests, so that nothing is done for the first time."""
    for load in (
        Load(_TWENTY, stream=False, concurrency=8, requests=40),
        Load(_ONE, concurrency=8, requests=40),
        Load(_SHORT, concurrency=20),
        Load(_FAST),
    ):
        async with Crowd(target.door, load) as crowd:
            await crowd.finish()


async def _one_fast(target: Target, size: Size) -> Measured:
    cost = await _cost(target, Load(_FAST), size)
    return Measured({"s1_us": cost.per_chunk})


async def _many_paced(target: Target, size: Size) -> Measured:
    # The ramp is no multiple of the gap, so that chunks of different streams do not
    # fall together.
    load = Load(_STEADY, concurrency=200, ramp_seconds=1.03)
    cost = await _cost(target, load, size)
    return Measured({"s2_us": cost.per_chunk, "s2_store_us": cost.store_per_chunk})


async def _few_paced(target: Target, _: Size) -> Measured:
    load = Load(_STEADY, concurrency=20, requests=2, ramp_seconds=0.97)
    async with Crowd(target.door, load) as crowd:
        seen = await crowd.finish()
    delays = quantiles((delay / 1e6 for delay in seen.delays_ns), n=1000)
    figures = {
        "s2b_p50_ms": delays[499],
        "s2b_p99_ms": delays[989],
        "s2b_first_ms": median(seen.first_ns) / 1e6,
    }
    return Measured(figures, delays)


async def _whole_answers(target: Target, size: Size) -> Measured:
    load = Load(_TWENTY, stream=False, concurrency=32, requests=20)
    cost = await _cost(target, load, size)
    return Measured({"s3n_us": cost.per_answer, "s3n_store_us": cost.store_per_answer})


async def _one_chunk(target: Target, size: Size) -> Measured:
    cost = await _cost(target, _ONE_CHUNK, size)
    return Measured({"s3_us": cost.per_answer, "s3_store_us": cost.store_per_answer})


_ONE_CHUNK = Load(_ONE, concurrency=32, requests=20)


async def _idle(target: Target, size: Size) -> Measured:
    before = target.rss_bytes()
    load = Load(IDLE, concurrency=size.idle, ramp_seconds=size.idle / 500)
    async with Crowd(target.door, load) as crowd:
        await crowd.begun()
        await anyio.sleep(_CALM_SECONDS)
        kilobytes = (target.rss_bytes() - before) / 1024
    return Measured({"s4_kb": kilobytes / size.idle})


async def _stuck(target: Target, _: Size) -> Measured:
    before = target.rss_bytes()
    load = Load(FIFTY_MB, concurrency=20, reads=False)
    async with Crowd(target.door, load):
        await _stalled(target)
        kilobytes = (target.rss_bytes() - before) / 1024
    return Measured({"s5_kb": kilobytes / load.concurrency})


async def _growth(target: Target, size: Size) -> Measured:
    """The same 10,000 chunks a second, of 200 and of 2,000 streams; then by length."""
    few = await _window(target, Load(_OFTEN, concurrency=200, ramp_seconds=1.03), size)
    many = await _window(
        target, Load(_SELDOM, concurrency=2_000, ramp_seconds=4.03), size
    )
    request = (await _cost(target, _ONE_CHUNK, size)).per_answer
    long = Load(size.long, concurrency=10, ramp_seconds=0.0103)
    short = replace(long, pace=_SHORT, requests=size.long.chunks // _SHORT.chunks)
    return Measured({
        "s6_200_us": few,
        "s6_2000_us": many,
        "s6_short_us": await _without_requests(target, short, size, request),
        "s6_long_us": await _without_requests(target, long, size, request),
    })


async def _abort(target: Target, size: Size) -> Measured:
    """How long after a client has left the provider sees it, in three moments."""
    figures = {}
    for moment, load in (
        ("stream", Load(_OFTEN, concurrency=size.leavers, ramp_seconds=0.53)),
        ("pause", Load(IDLE, concurrency=size.leavers)),
        ("pressure", Load(FIFTY_MB, concurrency=20, reads=False)),
    ):
        waits = await _leave(target, load)
        lost = load.concurrency - len(waits)
        figures[f"abort_{moment}_unseen"] = float(lost)
        if waits:
            figures[f"abort_{moment}_p50_ms"] = median(waits)
            figures[f"abort_{moment}_max_ms"] = max(waits)
    return Measured(figures)


SCENARIOS = (
    Scenario("s1", _one_fast),
    Scenario("s2", _many_paced),
    Scenario("s2b", _few_paced, direct=True),
    Scenario("s3n", _whole_answers),
    Scenario("s3", _one_chunk),
    Scenario("s4", _idle, fresh=True, slow=True),
    Scenario("s5", _stuck, fresh=True, slow=True),
    Scenario("s6", _growth, slow=True),
    Scenario("abort", _abort, direct=True, slow=True),
)


@dataclass(frozen=True, slots=True)
class _Cost:
    """CPU in seconds, and what it was spent on."""

    cpu: float
    store: float
    answers: int
    chunks: int

    @property
    def per_chunk(self) -> float:
        return self.cpu / self.chunks * 1e6

    @property
    def store_per_chunk(self) -> float:
        return self.store / self.chunks * 1e6

    @property
    def per_answer(self) -> float:
        return self.cpu / self.answers * 1e6

    @property
    def store_per_answer(self) -> float:
        return self.store / self.answers * 1e6


async def _cost(target: Target, load: Load, size: Size) -> _Cost:
    """Put the load on, again and again, until its CPU is many ticks."""
    seen = Seen()
    cpu, store = target.cpu_seconds(), target.store_seconds()
    until = time.monotonic() + size.longest_seconds
    while True:
        async with Crowd(target.door, load, seen) as crowd:
            await crowd.finish()
        spent = target.cpu_seconds() - cpu
        if spent >= max(size.cpu_seconds, 10 * TICK_SECONDS):
            break
        if time.monotonic() > until:
            break
    return _Cost(spent, target.store_seconds() - store, seen.answers, seen.chunks)


async def _window(target: Target, load: Load, size: Size) -> float:
    """CPU per chunk in µs while all streams flow, their requests not included."""
    async with Crowd(target.door, load) as crowd:
        await crowd.begun()
        await anyio.sleep(_CALM_SECONDS)
        cpu, chunks = target.cpu_seconds(), crowd.seen.chunks
        await anyio.sleep(size.window_seconds)
        spent = target.cpu_seconds() - cpu
        return spent / (crowd.seen.chunks - chunks) * 1e6


async def _without_requests(
    target: Target, load: Load, size: Size, request_us: float
) -> float:
    """CPU per chunk in µs, less what a stream of one chunk costs for each request."""
    cost = await _cost(target, load, size)
    return (cost.cpu * 1e6 - cost.answers * request_us) / (cost.chunks - cost.answers)


async def _leave(target: Target, load: Load) -> list[float]:
    """Have one client after the other leave; milliseconds until the provider knew."""
    async with Crowd(target.door, load) as crowd:
        await (crowd.begun() if load.reads else _stalled(target))
        left = {}
        for client in crowd.clients:
            left[client.number] = client.leave()
            await anyio.sleep(0.017)
        await anyio.sleep(_CALM_SECONDS)
        closed = json.loads(await ask(target.provider, "/stats"))["closed"]
    return [(closed[one] - at) / 1e6 for one, at in left.items() if one in closed]


async def _stalled(target: Target) -> None:
    """Wait until the provider gets rid of nothing more, or of all."""
    before, sent = -1, 0
    with anyio.move_on_after(30):
        while sent != before:
            await anyio.sleep(_CALM_SECONDS)
            stats = json.loads(await ask(target.provider, "/stats"))
            before, sent = sent, stats["sent"]
