"""Processes on a core of their own, and what they cost as ``/proc`` tells it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_CORES = sorted(os.sched_getaffinity(0))
TARGET_CORE = _CORES[0]
LOAD_CORE = _CORES[-1]
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
START_SECONDS = 120.0
_LEAVE_SECONDS = 10.0


@contextmanager
def pinned(
    command: Sequence[str],
    core: int,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Run a command on one core from entry to exit of the block.

    Args:
        log: Gets what it writes.
        environment: More variables than ours.

    Yields:
        Its process id.
    """
    ours = os.sched_getaffinity(0)
    with log.open("ab") as output:
        os.sched_setaffinity(0, {core})  # a child inherits it, threads and all
        try:
            process = subprocess.Popen(
                command,
                env={**os.environ, **(environment or {})},  # noqa: TID251 - a child's
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        finally:
            os.sched_setaffinity(0, ours)
    with process:
        try:
            yield process.pid
        finally:
            _stop(process)


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module."""
    return [sys.executable, "-m", module, *arguments]


def tree(pid: int) -> list[int]:
    """A process and all that descend from it and are there."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text("ascii").split()
        except FileNotFoundError:  # a thread that has ended
            continue
        for child in children:
            found.extend(tree(int(child)))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process tree so far, those that have ended included.

    A child that ends moves its time to its parent's account of children, so that the
    sum never falls. In steps of ``TICK_SECONDS``.
    """
    return sum(_ticks(each) for each in tree(pid)) * TICK_SECONDS


def rss_bytes(pid: int) -> int:
    """Resident memory of a process tree; a page that is shared counts for each."""
    pages = 0
    for each in tree(pid):
        try:
            statm = Path(f"/proc/{each}/statm").read_text("ascii")
        except FileNotFoundError:
            continue
        pages += int(statm.split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def await_port(port: int, log: Path) -> None:
    """Wait until somebody listens there.

    Raises:
        TimeoutError: Nobody does; with the end of the log.
    """
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    message = f"nothing listens on port {port}: {log.read_text()[-2000:]}"
    raise TimeoutError(message)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _ticks(pid: int) -> int:
    """utime, stime, cutime and cstime: fields 14 to 17 of proc(5)'s ``stat``."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii")
    except FileNotFoundError:
        return 0
    return sum(map(int, stat.rpartition(")")[2].split()[11:15]))
