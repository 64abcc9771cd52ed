"""What the gateway costs, beside nginx: CPU, latency, memory, abort, growth.

``python -m bench`` (or ``make bench``) prints a table. The target runs alone on one
core, provider and load on the other; CPU is the user and system time of the target's
processes from ``/proc``, which holds on a noisy machine where elapsed time does not.
How each figure is measured: ``docs/performance.md``.
"""
