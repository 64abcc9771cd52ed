"""An httpx transport for long, slow, many answers: HTTP/1.1 on asyncio protocols.

httpx's own pool looks at every connection for every request, loses a slot when a waiter
is cancelled, and cannot stop reading at a byte count (ADR 10). This one keeps idle
connections in a stack, holds nothing for a waiter, and pulls.

====================== ==========================================================
module                 holds
====================== ==========================================================
``pool``               idle connections: last in, first out
``connection``         one connection: its state, its buffer, the parser's callbacks
``body``               the readers of an answer
``tls``                the same over TLS
``request``            the bytes of a request
``pooled_transport``   connect, ask, repeat once: what httpx calls
====================== ==========================================================
"""

from gateway.providers.transport.body import ResponseBody
from gateway.providers.transport.pooled_transport import PooledTransport

__all__ = ["PooledTransport", "ResponseBody"]
