"""What the gateway costs: CPU per chunk and per request, beside nginx.

``python -m bench`` (or ``make bench``) prints a table. The target runs alone on one
core, provider and load on the other; CPU is the target's own user and system time from
``/proc``, which holds on a noisy machine where elapsed time does not.
"""
