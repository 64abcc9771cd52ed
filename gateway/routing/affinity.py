"""Session affinity: the same session goes to the same candidate, as far as load allows.

A provider answers faster what it has seen before: vLLM keeps the prefixes of earlier
prompts. So a session's requests prefer one candidate, by rendezvous hashing: each pair
of session and candidate has a score of its own, and the highest wins. Nothing is
remembered, every gateway of a fleet decides alike, and a candidate that goes takes only
its own sessions with it (Thaler and Ravishankar, 1998).

A candidate whose load is beyond its share, times ``max_load``, is passed over for the
next in the session's order (Mirrokni, Thorup and Zadimoghaddam, 2016).
"""

from hashlib import blake2b
from math import log

_SPAN = 2.0**64


def preference(session: str, candidate: str, weight: float) -> float:
    """How much the session prefers this candidate; above 0, the highest wins.

    Over many sessions a candidate wins as often as its weight says.
    """
    pair = f"{candidate}\0{session}".encode("utf-8", "surrogatepass")
    drawn = int.from_bytes(blake2b(pair, digest_size=8).digest())
    return -weight / log((drawn + 0.5) / _SPAN)


def most_live(total: int, share: float, max_load: float) -> float:
    """How many exchanges a candidate may have, one more included, and be preferred.

    Args:
        total: That its equals have, itself included.
        share: Its part of their weights, above 0 to 1.
        max_load: Times its share; at least 1.
    """
    return max(1.0, max_load * share * (total + 1))
