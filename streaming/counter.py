"""Counting the tokens of a text that arrives in pieces.

Encoding every piece by itself counts too much: up to +156 % was measured, because
tokens straddle pieces. The counter therefore holds text back until it can be cut where
the encoder would part it anyway, and encodes every character once.

A *safe cut* is a place between two characters where ``encode(left) + encode(right)``
equals ``encode(left + right)`` whatever surrounds them. These hold for tiktoken's
``cl100k_base`` and ``o200k_base``, and follow from their patterns:

==================== ===========================================================
left of the cut      right of the cut
==================== ===========================================================
not white space      space, tab
letter               digit, CR, LF, punctuation (full-width too) except ``'``
digit                letter, CR, LF, punctuation
punctuation          digit
CR, LF               anything but white space and ``/``
==================== ===========================================================

Letters are ASCII, CJK ideographs, kana and Hangul; digits and punctuation are ASCII;
nothing else is ever a cut. Three traps: an apostrophe after a letter may start a
contraction (``don't``), a ``/`` after a newline may belong to punctuation before it,
and "all but the last piece of the pattern" is not safe (``使用JSON`` and ``Path`` are
one piece).
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence

SETTLE_CHARACTERS = 512
"""How much text is gathered before it is encoded."""

LONGEST_RUN = 16_128
"""Characters without a safe cut after which the counter cuts all the same. It is also
the longest slice that is encoded at a time."""

_LETTER = r"A-Za-z\u4e00-\u9fff\u3041-\u3096\u30a1-\u30fa\uac00-\ud7a3"
_PUNCTUATION_EXCEPT_APOSTROPHE = r"!-&(-/:-@\[-`{-~"
_FULL_WIDTH_PUNCTUATION = r"\u3001\u3002\uff01-\uff0f\uff1a-\uff1f"
# Greedy: the match ends at the last cut, each alternative taking the character left of
# it and looking at the one right of it.
_UP_TO_LAST_SAFE_CUT = re.compile(
    rf"""(?s:.*)(?:
        \S(?=[ \t])
      | [{_LETTER}]
        (?=[{_PUNCTUATION_EXCEPT_APOSTROPHE}{_FULL_WIDTH_PUNCTUATION}0-9\r\n])
      | [0-9](?=[{_LETTER}{_PUNCTUATION_EXCEPT_APOSTROPHE}'\r\n])
      | [{_PUNCTUATION_EXCEPT_APOSTROPHE}'](?=[0-9])
      | [\r\n](?=[^\s/])
    )""",
    re.VERBOSE,
)


def last_safe_cut(text: str, start: int = 0, end: int = sys.maxsize) -> int:
    """Index of the last safe cut in ``text[start:end]``; ``start`` if there is none."""
    match = _UP_TO_LAST_SAFE_CUT.match(text, start, end)
    return match.end() if match else start


def pieces(text: str, size: int) -> Iterator[str]:
    """The text in order, in pieces of at most ``size`` characters cut at safe cuts.

    A run of more than ``size`` characters without a safe cut is cut by force.
    """
    start = 0
    while len(text) - start > size:
        cut = last_safe_cut(text, start, start + size + 1)
        if cut == start:
            cut += size
        yield text[start:cut]
        start = cut
    yield text[start:]


class IncrementalCounter:
    """Counts the tokens of a text fed in any pieces, exactly.

    However the text is split, ``total()`` is ``len(encode(text))``, and the same for
    every split even where a run without a safe cut had to be cut by force.

    Args:
        encode: ``encode_ordinary`` of one of the encodings above; called with at most
            ``LONGEST_RUN`` characters at a time.

    Attributes:
        forced: Cuts made by force so far; each may cost a token or so of exactness.
    """

    __slots__ = (
        "_counted",
        "_counted_tokens",
        "_encode",
        "_settle_at",
        "_settled_tokens",
        "_start",
        "_tail",
        "forced",
    )

    def __init__(self, encode: Callable[[str], Sequence[object]]) -> None:
        self._encode = encode
        # A string, not a list of pieces: as fast to grow up to the next settlement,
        # and a tenth of the memory.
        self._tail = ""
        self._start = 0  # of what is not settled in it; above 0 only while behind
        self._settle_at = SETTLE_CHARACTERS
        self._settled_tokens = 0
        self._counted = ""
        self._counted_tokens = 0
        self.forced = 0

    def feed(self, text: str) -> None:
        """Take the next piece of the text; at most one slice is encoded."""
        self._tail += text
        if len(self._tail) >= self._settle_at:
            self.catch_up()

    @property
    def is_behind(self) -> bool:
        """Whether more than a slice waits: a piece was longer than that."""
        return len(self._tail) - self._start > LONGEST_RUN

    def catch_up(self) -> None:
        """Encode one slice of what waits, up to its last safe cut: some 2 ms."""
        tail, start = self._tail, self._start
        cut = last_safe_cut(tail, start, start + LONGEST_RUN + 1)
        if cut == start and self.is_behind:
            cut += LONGEST_RUN
            self.forced += 1
        if cut > start:
            self._settled_tokens += len(self._encode(tail[start:cut]))
            self._start = cut
        if not self.is_behind:
            self._tail, self._start = tail[cut:], 0
            # Doubled, so that a long run without a cut is not searched over and over.
            self._settle_at = min(
                max(SETTLE_CHARACTERS, 2 * len(self._tail)), LONGEST_RUN + 1
            )

    def total(self) -> int:
        """Tokens of everything fed so far. More may be fed afterwards."""
        if self._counted is not self._tail:
            while self.is_behind:
                self.catch_up()
            self.catch_up()
            self._counted = self._tail
            self._counted_tokens = len(self._encode(self._tail))
        return self._settled_tokens + self._counted_tokens
