"""Several processes that do the same, and one that sees to it that they do.

================== ================================================================
a signal           here
================== ================================================================
SIGTERM, SIGINT    the workers drain; none is started any more; exit 0 after the last
a second one       the workers are killed; exit 1
SIGHUP             is passed on
SIGCHLD            a worker that has ended is started again
================== ================================================================

A worker that ends before it was ready has the next one wait, longer every time; when it
did so ``MOST_FAILURES`` times in a row, and no other is ready, all is given up: exit 1.

Nothing here has a thread or an event loop, so forking is safe; and a worker that is
started again has its modules loaded already.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Final

from gateway.demo import lifeline

ECHO_SECONDS: Final = 0.05
"""Ctrl-C reaches the terminal's whole group, and ``uv run`` passes it on once more."""
MOST_FAILURES: Final = 5
_LEAST_WAIT_SECONDS: Final = 0.1
_MOST_WAIT_SECONDS: Final = 5.0
_TOLD: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGCHLD,
    signal.SIGALRM,
)

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Worker:
    """A place for a process; ``pid`` is 0 while there is none."""

    number: int
    pid: int = 0
    failures: int = 0  # in a row, before it was ready
    start_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """What workers are.

    Attributes:
        run: A worker's whole life, in its process; SIGHUP is blocked at its beginning.
        is_ready: Whether the worker of this number, with this process id, has become
            ready.
        ended: The worker of this number is gone; told before there is another.
        leave: No worker is started any more.
    """

    run: Callable[[int], None]
    is_ready: Callable[[int, int], bool]
    ended: Callable[[int], None]
    leave: Callable[[], None]


class Supervisor:
    """Starts workers, and starts them again; for the main thread.

    Args:
        work: What they do.
        amount: How many there are.
    """

    def __init__(self, work: Work, amount: int) -> None:
        self._work = work
        self._workers = [_Worker(number) for number in range(amount)]
        self._left_at: float | None = None
        self._lifeline, self._our_end = os.pipe()

    def run(self) -> int:
        """Until the last worker has left; returns the exit code."""
        signal.signal(signal.SIGCHLD, _wake)  # one that is ignored may never come
        signal.pthread_sigmask(signal.SIG_BLOCK, _TOLD)
        while True:
            self._start()
            match signal.sigwait(_TOLD):
                case signal.SIGTERM | signal.SIGINT:
                    if self._leave():
                        _log.warning("second signal: leases are left to expire")
                        return self._kill()
                case signal.SIGHUP:
                    self._tell(signal.SIGHUP)
                case signal.SIGCHLD:
                    self._bury()
                case _:  # it is time to start one
                    pass
            if self._left_at is not None and not self._running:
                _log.info("all workers have left")
                return 0
            if self._is_hopeless:
                _log.critical("workers end before they are ready: giving up")
                return self._kill()

    @property
    def _running(self) -> list[_Worker]:
        return [one for one in self._workers if one.pid]

    @property
    def _is_hopeless(self) -> bool:
        return max(one.failures for one in self._workers) >= MOST_FAILURES and not any(
            self._work.is_ready(one.number, one.pid) for one in self._running
        )

    def _start(self) -> None:
        """Start those whose time has come, and be woken for the next one."""
        if self._left_at is not None:
            return
        now = monotonic()
        waiting = [one for one in self._workers if not one.pid]
        for one in waiting:
            if one.start_at <= now:
                self._fork(one)
        later = [one.start_at - now for one in waiting if not one.pid]
        signal.setitimer(signal.ITIMER_REAL, min(later, default=0.0))

    def _fork(self, one: _Worker) -> None:
        parent = os.getpid()
        one.pid = os.fork()
        if not one.pid:
            _become(lambda: self._live(one.number, parent))
        _log.info("worker %d is started", one.pid)

    def _live(self, which: int, parent: int) -> None:
        """A worker's whole life."""
        os.close(self._our_end)
        if sys.platform == "linux":
            lifeline.die_with_parent(parent)
        else:
            os.dup2(self._lifeline, 0)
            lifeline.watch()
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(_TOLD) - {signal.SIGHUP})
        self._work.run(which)

    def _leave(self) -> bool:
        """Have the workers drain; whether this was asked for before."""
        if self._left_at is not None:
            return monotonic() - self._left_at >= ECHO_SECONDS
        self._left_at = monotonic()
        self._work.leave()
        self._tell(signal.SIGTERM)
        return False

    def _kill(self) -> int:
        """End what is left, at once."""
        self._tell(signal.SIGKILL)
        for one in self._running:
            os.waitpid(one.pid, 0)
        return 1

    def _tell(self, number: signal.Signals) -> None:
        for one in self._running:  # each is there until it has been waited for
            os.kill(one.pid, number)

    def _bury(self) -> None:
        """Take note of every worker that has ended."""
        for one in self._running:
            pid, status = os.waitpid(one.pid, os.WNOHANG)
            if pid:
                was_ready = self._work.is_ready(one.number, pid)
                self._work.ended(one.number)
                one.pid, one.failures = 0, 0 if was_ready else one.failures + 1
                wait = _wait_after(one.failures)
                one.start_at = monotonic() + wait
                self._report(pid, os.waitstatus_to_exitcode(status), wait)

    def _report(self, pid: int, code: int, wait: float) -> None:
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        if self._left_at is None:
            _log.error("worker %d ended %s; the next in %g s", pid, how, wait)
        else:
            _log.info("worker %d ended %s", pid, how)


def _wait_after(failures: int) -> float:
    if not failures:
        return 0.0
    return min(_LEAST_WAIT_SECONDS * 2.0**failures, _MOST_WAIT_SECONDS)


def _become(life: Callable[[], None]) -> None:
    """Live, and never return: what stands above on the stack is the parent's."""
    code = 1
    try:
        life()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except Exception:  # noqa: BLE001 - BLE cannot see that this process ends here
        _log.exception("a worker failed")
    finally:
        os._exit(code)


def _wake(*_: object) -> None:
    pass
