"""Providers: one upstream's wire format each, behind one port.

``provider`` is the port. ``transport`` moves bytes, ``upstream`` speaks HTTP over it,
an adapter (``vllm``) knows one dialect, ``registry`` is where adapters meet names.
"""
