"""The supervisor in a process of its own, with workers that do what a test says."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import pytest

BEGINNING = """
import logging, os, signal, sys, time
from gateway.server.supervisor import Supervisor, Work
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
def leave(*_): sys.exit(0)
def say(text): os.write(1, text.encode())  # in one piece
def until_term():
    signal.signal(signal.SIGTERM, leave)
    say(f"up {os.getpid()}\\n")
    while True: time.sleep(0.01)  # no signal is missed
"""


@contextmanager
def supervisor(
    worker: str, ready: str = "True", amount: int = 2
) -> Iterator[subprocess.Popen[str]]:
    """A process; ``worker`` is a worker's body, ``ready`` whether it was ready."""
    program = f"""{BEGINNING}
def run(number):
    {worker}
work = Work(run, lambda number, pid: {ready}, lambda number: None, lambda: None)
sys.exit(Supervisor(work, {amount}).run())
"""
    process = subprocess.Popen(
        (sys.executable, "-c", program), stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def pids(process: subprocess.Popen[str], amount: int) -> list[int]:
    """Of the next workers that are up."""
    assert process.stdout is not None
    found: list[int] = []
    for line in process.stdout:
        if line.startswith("up "):
            found.append(int(line.split()[1]))
        if len(found) == amount:
            return found
    raise AssertionError(found)


def rest(process: subprocess.Popen[str]) -> str:
    """What is said until the end."""
    assert process.stdout is not None
    return process.stdout.read()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_worker_is_started_again_at_once_when_it_ends(number: signal.Signals) -> None:
    with supervisor("until_term()") as process:
        first, _ = pids(process, 2)
        ended_at = monotonic()
        os.kill(first, number)
        (another,) = pids(process, 1)
        assert monotonic() - ended_at < 1
        assert another != first
        process.terminate()
        assert process.wait() == 0


def test_all_is_given_up_when_no_worker_becomes_ready() -> None:
    with supervisor("sys.exit(3)", ready="False") as process:
        begun_at = monotonic()
        said = rest(process)
        assert process.wait() == 1
    assert monotonic() - begun_at > 1  # they were started slower and slower
    assert 5 <= said.count("ended with code 3") <= 10
    assert "giving up" in said


def test_failing_worker_is_tried_on_while_another_serves() -> None:
    worker = "until_term() if number else os._exit(3)"
    with supervisor(worker, ready="number == 1") as process:
        assert process.stdout is not None
        failures = 0
        while failures < 6:
            failures += "ended with code 3" in process.stdout.readline()
        assert process.poll() is None
        process.terminate()
        assert process.wait() == 0


def test_exit_is_0_when_all_workers_have_left_though_one_had_failed() -> None:
    with supervisor("until_term()") as process:
        first, _ = pids(process, 2)
        process.terminate()
        os.kill(first, signal.SIGKILL)
        said = rest(process)
        assert process.wait() == 0
    assert "all workers have left" in said
    assert "the next in" not in said


def test_second_signal_kills_workers_that_do_not_leave() -> None:
    worker = """signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(f"up {os.getpid()}\\n")
    while True: time.sleep(0.01)  # no signal is missed"""
    with supervisor(worker) as process:
        both = pids(process, 2)
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.terminate()
        assert process.wait(3) == 1
    for pid in both:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_hangup_is_kept_for_a_worker_that_is_not_ready_for_it() -> None:
    worker = """signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, leave)
    say(f"up {os.getpid()}\\n")
    time.sleep(0.3)
    signal.signal(signal.SIGHUP, lambda *_: say("hup\\n"))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP, signal.SIGTERM})
    while True: time.sleep(0.01)  # no signal is missed"""
    with supervisor(worker) as process:
        pids(process, 2)
        process.send_signal(signal.SIGHUP)
        process.terminate()
        said = rest(process)
        assert process.wait() == 0
    assert said.count("hup\n") == 2
