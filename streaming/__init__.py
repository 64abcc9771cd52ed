"""The relay: bytes from a provider to a client, framed, metered and bounded.

It knows frames, tokens and time. It does not know HTTP frameworks, Redis, vendors or
the gateway around it. Imports inside point only downwards::

    testing > pump > stages > stage > dialects | counter > sse > errors > outcome
"""
