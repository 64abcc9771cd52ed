"""Runs a module and notes how long its event loop was blocked, for others to read.

    python watched_loop.py FILE MODULE [ARGUMENT ...]

FILE holds two doubles in the machine's order: the longest block so far in seconds,
which a reader may set back, and how many turns were looked at.

A block is the time between two turns of a timer of 1 ms, or the processor time that the
process used in it, whichever is less: a process that waits for a processor is not
blocked, and a thread that keeps the interpreter's lock blocks the loop as if it ran in
it.
"""

import asyncio
import mmap
import runpy
import struct
import sys
from pathlib import Path
from time import perf_counter, process_time

import uvloop

TURN_SECONDS = 0.001
NOTE = struct.Struct("=dd")

_new_event_loop = uvloop.new_event_loop


class _Watch:
    def __init__(self, loop: asyncio.AbstractEventLoop, note: mmap.mmap) -> None:
        self._loop = loop
        self._note = note
        self._at = perf_counter(), process_time()
        loop.call_soon(self._turn)

    def _turn(self) -> None:
        (wall, used), self._at = self._at, (perf_counter(), process_time())
        block = min(self._at[0] - wall, self._at[1] - used)
        longest, turns = NOTE.unpack_from(self._note)
        NOTE.pack_into(self._note, 0, max(block, longest), turns + 1)
        self._loop.call_later(TURN_SECONDS, self._turn)


def _main(path: str, module: str, *arguments: str) -> None:
    with Path(path).open("r+b") as file:
        note = mmap.mmap(file.fileno(), NOTE.size)

    def new_event_loop() -> asyncio.AbstractEventLoop:
        loop = _new_event_loop()
        _Watch(loop, note)
        return loop

    uvloop.new_event_loop = new_event_loop  # type: ignore[assignment]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
