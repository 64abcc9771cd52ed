"""What several workers have counted, as one: each reports, anyone adds up.

A worker writes its samples to its own place on the board. Counters and histograms of a
worker that died stay there, and the worker after it goes on from them; its gauges go::

    worker 0 ── report ─►  place 0 ─┐
    worker 1 ── report ─►  place 1 ─┼─► sum, min or max ─► whoever is scraped
                           (past 1) ┘

A worker that is scraped reports before it adds up: no later sum, made elsewhere, is
less than what it told.
"""

import os
import struct
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final, override
from zlib import crc32

import msgspec
from prometheus_client import Metric
from prometheus_client.registry import Collector

REPORT_SECONDS: Final = 0.25
"""Between reports, at least; what a worker counts after its last one dies with it."""
REPORT_SHARE: Final = 0.02
"""Of a core that reports may take; a worker with many series makes fewer of them."""
_HEADER: Final = struct.Struct("<QII")  # number of the report, its length, its checksum

type Join = Callable[[Iterable[float]], float]
"""How one sample of several workers becomes one."""


class Family(msgspec.Struct, array_like=True, frozen=True):
    """A metric with its samples: name, labels, value."""

    name: str
    meaning: str
    kind: str
    samples: list[tuple[str, dict[str, str], float]]


class Report(msgspec.Struct, array_like=True, frozen=True):
    """What a worker has counted, and those before it; ``pid`` is 0 once it is dead."""

    pid: int = 0
    now: Sequence[Family] = ()
    past: Sequence[Family] = ()


class Place:
    """One worker's latest report, read whole or not at all.

    Two files take turns, so that a writer killed halfway spoils the older report. They
    have no name: nothing is left of them when the last process has ended.
    """

    def __init__(self) -> None:
        self._files = (_nameless_file(), _nameless_file())

    def write(self, report: Report) -> None:
        """Replace the report; only one process may do so at a time."""
        data = msgspec.msgpack.encode(report)
        number = self._latest()[0] + 1
        header = _HEADER.pack(number, len(data), crc32(data))
        os.pwrite(self._files[number % 2], header + data, 0)

    def read(self) -> Report:
        """The latest report; an empty one before the first."""
        _, data = self._latest()
        return msgspec.msgpack.decode(data, type=Report) if data else Report()

    def _latest(self) -> tuple[int, bytes]:
        return max(
            _whole(os.pread(file, os.fstat(file).st_size, 0)) for file in self._files
        )


class Board(Collector):
    """The places of all workers; made before they fork.

    Args:
        workers: How many there are.
        joins: How gauges become one, by name; those not named are summed.
    """

    def __init__(self, workers: int, joins: Mapping[str, Join]) -> None:
        self._places = [Place() for _ in range(workers)]
        self._joins = joins

    def seat(self, number: int) -> "Seat":
        """For the worker of this number, in its own process."""
        return Seat(self, self._places[number], is_first=number == 0)

    def reporter(self, number: int) -> int:
        """The process that reported there last; 0 when it is known to be dead."""
        return self._places[number].read().pid

    def retire(self, number: int) -> None:
        """Its worker is dead: keep what it has counted."""
        last = self._places[number].read()
        counted = [one for one in last.now if one.kind != "gauge"]
        self._places[number].write(Report(past=self._joined([*last.past, *counted])))

    @override
    def collect(self) -> Iterator[Metric]:
        """All workers' metrics as one's."""
        reports = [place.read() for place in self._places]
        now_and_past = [(*report.now, *report.past) for report in reports]
        for family in self._joined(chain.from_iterable(now_and_past)):
            metric = Metric(family.name, family.meaning, family.kind)
            for sample in family.samples:
                metric.add_sample(*sample)
            yield metric

    def _joined(self, families: Iterable[Family]) -> list[Family]:
        """One of all of a name, in the order of their first appearance."""
        named: dict[str, list[Family]] = defaultdict(list)
        for family in families:
            named[family.name].append(family)
        return [self._join(same) for same in named.values()]

    def _join(self, families: Sequence[Family]) -> Family:
        first = families[0]
        found: dict[tuple[str, ...], list[float]] = defaultdict(list)
        labelled: dict[tuple[str, ...], dict[str, str]] = {}
        for family in families:
            for name, labels, value in family.samples:
                series = name, *labels.values()
                labelled[series] = labels
                found[series].append(value)
        join = self._joins.get(first.name, sum)
        samples = [
            (
                series[0],
                labelled[series],
                (min if _is_time(series[0]) else join)(values),
            )
            for series, values in found.items()
        ]
        return Family(first.name, first.meaning, first.kind, samples)


class Seat:
    """A worker's access to the board.

    Attributes:
        board: All workers' metrics.
        is_first: There is one such worker: what must be done once is done by it.
    """

    def __init__(self, board: Board, place: Place, *, is_first: bool) -> None:
        self.board = board
        self.is_first = is_first
        self._place = place
        self._past = place.read().past

    def report(self, metrics: Iterable[Metric]) -> None:
        """Put these on the board, beside what earlier workers there counted."""
        now = [_family(metric) for metric in metrics]
        self._place.write(Report(os.getpid(), now, self._past))


def _family(metric: Metric) -> Family:
    samples = [(one.name, one.labels, one.value) for one in metric.samples]
    return Family(metric.name, metric.documentation, metric.type, samples)


def _is_time(sample: str) -> bool:
    """Whether it says since when there is a series."""
    return sample.endswith("_created")


def _nameless_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("gateway-metrics")  # a container may have no disk
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _whole(raw: bytes) -> tuple[int, bytes]:
    """A report's number and bytes; (0, nothing) where it is not whole."""
    if len(raw) >= _HEADER.size:
        number, length, checksum = _HEADER.unpack_from(raw)
        data = raw[_HEADER.size : _HEADER.size + length]
        if crc32(data) == checksum:
            return number, data
    return 0, b""
