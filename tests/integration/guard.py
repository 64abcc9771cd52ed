"""Runs a module that may speak to this machine alone, and reports to whom it spoke.

    python guard.py REPORT MODULE [ARGUMENT ...]

Every use of Python's sockets raises an audit event with the address. uvloop has sockets
of its own and raises none, so the server runs on asyncio's loop here.
"""

import runpy
import sys
from ipaddress import ip_address
from pathlib import Path

REFUSED = "refused"
_EVENTS = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
}
"""Which argument of an event is the address."""


def keep_to_this_machine(report: Path) -> None:
    """From now on a line is added for each address; a foreign one is refused."""

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event in _EVENTS and (host := _host(arguments[_EVENTS[event]])) is not None:
            verdict = "allowed" if _is_here(host) else REFUSED
            with report.open("a") as lines:
                lines.write(f"{verdict} {event} {host}\n")
            if verdict is REFUSED:
                message = f"{event}: {host}"
                raise PermissionError(message)

    sys.addaudithook(look)


def _host(address: object) -> str | None:
    """The host, or a unix socket's path; None where there is no peer."""
    if isinstance(address, tuple):
        address = address[0]
    return None if address is None else str(address)


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.startswith("/")


def _main(report: str, module: str, *arguments: str) -> None:
    from uvicorn import config

    config.LOOP_FACTORIES["uvloop"] = config.LOOP_FACTORIES["asyncio"]
    keep_to_this_machine(Path(report))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
