import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.processes import (
    TARGET_CORE,
    TICK_SECONDS,
    cpu_seconds,
    pinned,
    rss_bytes,
    tree,
)

BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"
GRANDPARENT = """
import subprocess, sys
child = [sys.executable, "-c", {child!r}]
subprocess.run([sys.executable, "-c", "import subprocess, sys; "
    "subprocess.run(sys.argv[1:])", *child])
print("over", flush=True)
import time
time.sleep(60)
"""
BURNT_SECONDS = 0.3


@contextmanager
def grandparent(tmp_path: Path, child: str) -> Iterator[tuple[int, Path]]:
    """A process whose child's child runs this code."""
    log = tmp_path / "log"
    code = GRANDPARENT.format(child=child)
    with pinned([sys.executable, "-c", code], TARGET_CORE, log) as pid:
        yield pid, log


def wait_for(text: str, log: Path) -> None:
    until = time.monotonic() + 20
    while text not in log.read_text() and time.monotonic() < until:
        time.sleep(0.02)
    assert text in log.read_text()


def test_cpu_is_the_whole_trees_when_a_grandchild_works(tmp_path: Path) -> None:
    child = BURN.format(seconds=BURNT_SECONDS)
    child += "print('burnt', flush=True)\ntime.sleep(60)"
    with grandparent(tmp_path, child) as (pid, log):
        wait_for("burnt", log)
        assert len(tree(pid)) == 3
        assert cpu_seconds(pid) >= BURNT_SECONDS - TICK_SECONDS


def test_cpu_keeps_a_childs_when_it_has_ended(tmp_path: Path) -> None:
    with grandparent(tmp_path, BURN.format(seconds=BURNT_SECONDS)) as (pid, log):
        wait_for("over", log)
        assert tree(pid) == [pid]
        assert cpu_seconds(pid) >= BURNT_SECONDS - TICK_SECONDS


def test_memory_is_the_whole_trees_when_a_grandchild_takes_some(
    tmp_path: Path,
) -> None:
    child = (
        "import time\nheld = b'x' * 50_000_000\n"
        "print('held', flush=True)\ntime.sleep(60)"
    )
    with grandparent(tmp_path, child) as (pid, log):
        wait_for("held", log)
        assert rss_bytes(pid) >= 50_000_000


def test_process_is_on_its_core_and_gone_when_the_block_ends(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import os, time\nprint(os.sched_getaffinity(0), flush=True)\ntime.sleep(60)"
    with pinned([sys.executable, "-c", code], TARGET_CORE, log) as pid:
        wait_for(f"{{{TARGET_CORE}}}", log)
        Path(f"/proc/{pid}/stat").read_text()
    with pytest.raises(FileNotFoundError):
        Path(f"/proc/{pid}/stat").read_text()
