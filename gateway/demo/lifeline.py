"""Become another program that dies when its parent does, by ``kill -9`` even.

Run as a script by its path (see ``processes``), with nothing but the standard library::

    python -I -S lifeline.py TIE PARENT_PID PROGRAM [ARGUMENT ...]

TIE ``kernel`` (Linux): the parent's end sends SIGKILL. The kernel means the *thread*
that forked, so this is for a parent that forks in its main thread. TIE ``watchdog``:
standard input must be a pipe whose other end only the parent has; a second process
waits for the end of that pipe, and then kills.

Either way the program keeps this process's id, so that the parent knows whom to stop,
and reads nothing from its standard input.
"""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the kernel was asked
        sys.exit("the parent is gone")


def watch() -> None:
    """Fork a watchdog that kills this process when standard input ends."""
    target = os.getpid()
    if os.fork() == 0:
        os.close(1)  # whoever reads the program's output must see its end
        os.close(2)
        os.read(0, 1)
        if os.getppid() == target:
            os.kill(target, signal.SIGKILL)
        os._exit(0)


def main(tie: str, parent: str, *command: str) -> None:
    """Tie this process to its parent, then become the command."""
    if tie == "kernel":
        die_with_parent(int(parent))
    else:
        watch()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execv(command[0], command)  # noqa: S606 - no shell, and the caller's own command


if __name__ == "__main__":
    main(*sys.argv[1:])
