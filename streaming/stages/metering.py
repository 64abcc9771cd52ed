"""Metering: how many tokens a stream has generated, and from whom we know it."""

from collections.abc import Callable, Hashable, Sequence
from enum import StrEnum
from typing import override

from streaming.counter import IncrementalCounter
from streaming.dialects.reading import Reading, TokenUsage
from streaming.stage import Batch, Stage

_UNBOUNDED = 2**53
_COUNTING_SLACK = 64
_MAX_RUNS = 1024  # a provider that invents choices must not cost memory


class UsageSource(StrEnum):
    """Whose count is charged, best first."""

    PROVIDER = "provider"  # its final usage
    CONTINUOUS = "continuous"  # its running usage, of a stream that was cut
    COUNTED = "counted"  # ours


class Meter(Stage):
    """Counts text and remembers usage; passes every event on.

    Usage is cumulative: a later report replaces an earlier one, and zero is a number.
    Only the running usage of several choices is added up, one figure for each choice.

    Args:
        encode: Text to tokens, for counting what no usage covers.

    Attributes:
        most: Completion tokens the provider was allowed.
        done: ``[DONE]`` has come, be it after an error.
        is_behind: A text was too long to be counted in one go; see ``catch_up``.
        usage: The last usage reported.
        first_text_at: When the first content, reasoning or tool text came.
        last_text_at: When the last one came.
        text_batches: Reads that brought text.
    """

    def __init__(self, encode: Callable[[str], Sequence[object]]) -> None:
        self._encode = encode
        self.most = _UNBOUNDED
        self._runs: dict[Hashable, IncrementalCounter] = {}  # text since the last usage
        self.done = False
        self.is_behind = False
        self._by_choice: dict[int, int] = {}  # running usage, where it is per choice
        self._known = 0  # tokens of all but the last so many bytes of text
        self._bytes_since_known = 0
        self.usage: TokenUsage | None = None
        self.first_text_at: float | None = None
        self.last_text_at: float | None = None
        self.text_batches = 0

    @override
    def apply(self, batch: Batch, now: float) -> Batch:
        """Take note of every event; nothing is changed."""
        heard = False
        for event in batch:
            if self.note(event.reading):
                heard = True
        if heard:
            self.text_batches += 1
            self.last_text_at = now
            if self.first_text_at is None:
                self.first_text_at = now
        return batch

    @override
    def flush(self) -> Batch:
        """Nothing is ever held back."""
        return []

    def note(self, reading: Reading) -> bool:
        """Take note of one event; tells whether it had text.

        What follows ``[DONE]`` is not part of the answer.
        """
        if self.done:
            return False
        self.done = reading.done
        if reading.usage is not None:
            self._take(reading.usage, reading.choices)
        elif reading.texts:
            self._count(reading.texts)
        return bool(reading.texts)

    def _count(self, texts: Sequence[tuple[Hashable, str]]) -> None:
        for run, text in texts:
            counter = self._runs.get(run)
            if counter is None:
                counter = self._begin(run)
            counter.feed(text)
            self.is_behind |= counter.is_behind
            self._bytes_since_known += len(text) if text.isascii() else 4 * len(text)

    def _take(self, usage: TokenUsage, choices: Sequence[int]) -> None:
        if len(choices) == 1 and len(self._by_choice) < _MAX_RUNS:
            # In an event of one choice vLLM reports that choice's tokens, not all.
            self._by_choice[choices[0]] = usage.completion_tokens
            if len(self._by_choice) > 1:
                completion = sum(self._by_choice.values())
                usage = TokenUsage(usage.prompt_tokens, completion)
        self.usage = usage
        # It covers all text so far, that of its own event included.
        self._known, self._bytes_since_known = usage.completion_tokens, 0
        if self._runs:
            self._runs.clear()

    def catch_up(self) -> None:
        """Count one slice of what waits; for callers who let others run in between."""
        behind = [one for one in self._runs.values() if one.is_behind]
        if behind:
            behind[0].catch_up()
        self.is_behind = bool(behind)

    def completion_tokens(self) -> int:
        """Completion tokens so far: as reported, and our count of the text since."""
        reported = 0 if self.usage is None else self.usage.completion_tokens
        counted = sum(counter.total() for counter in self._runs.values())
        self._known = reported + counted
        self._bytes_since_known = 0
        return self._known

    def known_progress(self) -> int | None:
        """Completion tokens so far, if the provider has reported all of them."""
        return None if self.usage is None or self._runs else self._known

    def progress_at_most(self) -> int:
        """Completion tokens so far, from above, without encoding: a byte is a token."""
        return self._known + self._bytes_since_known

    def overran(self) -> bool:
        """Whether the provider has generated more than it was allowed.

        By its own usage that is certain. Our count is of another tokenizer than the
        model's (15 were counted of a capped 12): it is believed beyond twice as many.
        """
        if self.usage is not None and self.usage.completion_tokens > self.most:
            return True
        bound = 2 * self.most + _COUNTING_SLACK
        return self.progress_at_most() > bound and self.completion_tokens() > bound

    def source(self, *, ended: bool) -> UsageSource:
        """Where ``completion_tokens()`` comes from.

        Args:
            ended: Whether the stream came to its proper end, which makes the last
                usage the final one.
        """
        if self.usage is None or (self._runs and not ended):
            return UsageSource.COUNTED
        return UsageSource.PROVIDER if ended else UsageSource.CONTINUOUS

    def _begin(self, run: Hashable) -> IncrementalCounter:
        if len(self._runs) >= _MAX_RUNS:
            run = next(iter(self._runs))
        return self._runs.setdefault(run, IncrementalCounter(self._encode))
