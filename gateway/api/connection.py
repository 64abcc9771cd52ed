"""The client's connection, where ASGI has no word for what must be done to it.

ASGI can end a response or leave it open; it cannot abort one, nor tell how much of what
was sent is still waiting. Both need the transport, which uvicorn keeps on the object
whose bound method it hands out as ``send``. With another server there is none, and the
stall policy works without it.
"""

import asyncio
import fcntl
import sys
import termios
from contextlib import suppress
from typing import cast

from starlette.types import Send


def transport_of(send: Send) -> asyncio.Transport | None:
    """The transport below the server's own ``send``, if it can be found."""
    # By its methods: uvloop's transports are no subclass of asyncio's.
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    return cast("asyncio.Transport", transport) if hasattr(transport, "abort") else None


def unsent_bytes(transport: asyncio.Transport) -> int:
    """What the client's kernel has not acknowledged; where none tells, what we hold.

    The kernel takes more from us only when a good part of its own buffer is free: of a
    slow reader that buffer knows long before ours does.
    """
    held = transport.get_write_buffer_size()
    with suppress(OSError, ValueError):  # it may have been closed
        fileno: int = transport.get_extra_info("socket").fileno()
        held += int.from_bytes(
            fcntl.ioctl(fileno, termios.TIOCOUTQ, bytes(4)), sys.byteorder
        )
    return held
