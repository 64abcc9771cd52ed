"""The relay: bytes from a provider to a client, framed, metered and bounded.

It knows frames, tokens and time. It does not know HTTP frameworks, Redis, vendors or
the gateway around it. Imports inside point only downwards::

    testing > pump | ticker > life > stages > stage > dialects | counter
        > sse | deadlines > errors > outcome

Only pump, ticker and life know an event loop.
"""
