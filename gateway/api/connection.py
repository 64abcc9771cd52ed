"""The client's connection, where ASGI has no word for what must be done to it.

ASGI can end a response or leave it open; it cannot abort one, nor tell how much of what
was sent is still waiting. Both need the transport, which uvicorn keeps on the object
whose bound method it hands out as ``send``. With another server there is none, and the
stall policy works without it.
"""

import asyncio
from typing import cast

from starlette.types import Send


def transport_of(send: Send) -> asyncio.Transport | None:
    """The transport below the server's own ``send``, if it can be found."""
    # By its methods: uvloop's transports are no subclass of asyncio's.
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    return cast("asyncio.Transport", transport) if hasattr(transport, "abort") else None
