"""One exchange's life: what may end it from outside, and the first thing that did."""

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self, override

import anyio

from streaming.deadlines import Pulse
from streaming.errors import ClientStalled, Fault, UpstreamSilent


class Life(AbstractContextManager["Life"]):
    """One exchange's life: what may end it, and the first thing that did.

    Whatever ends an exchange from outside (its client left, its time ran out, the
    gateway drains) calls ``end`` with the fault to blame. The block is cancelled and
    swallows that cancellation: what follows the block reads ``cause``.

    Args:
        pulse: What the exchange waits for.

    Attributes:
        on_trial: The scope of a provider that has not begun its answer.
    """

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse
        self.cause: Fault | None = None
        self.completed = False
        self._scope = anyio.CancelScope()
        self.on_trial: anyio.CancelScope | None = None

    def blame(self, fault: Fault) -> None:
        """This ended the exchange, unless something else did before.

        Of a whole answer only its reader can still be a cause, by not taking the rest.
        """
        if self.cause is None and (
            not self.completed or isinstance(fault, ClientStalled)
        ):
            self.cause = fault

    def end(self, fault: Fault) -> None:
        """End the block for this reason, unless there is one already.

        A provider that is silent while it is on trial ends the trial alone.
        """
        if isinstance(fault, UpstreamSilent) and self.on_trial is not None:
            self.on_trial.cancel()
            return
        self.blame(fault)
        self._scope.cancel()

    def trial(self) -> "Trial":
        """A block in which a provider may begin its answer, or be left for another."""
        return Trial(self)

    def complete(self) -> None:
        """The answer is whole and has been handed over, whatever happens meanwhile."""
        self.completed = True
        self.cause = None

    @property
    def ended(self) -> bool:
        """Whether the exchange was told to end."""
        return self.cause is not None

    @override
    def __enter__(self) -> Self:
        self._scope.__enter__()
        return self

    @override
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._scope.__exit__(exc_type, exc, traceback)


class Trial(AbstractContextManager[None]):
    """A provider's chance to begin its answer.

    Raises:
        UpstreamSilent: On leaving, when it did not in time.
    """

    def __init__(self, life: Life) -> None:
        self._life = life
        self._scope = anyio.CancelScope()

    @override
    def __enter__(self) -> None:
        self._scope.__enter__()
        self._life.on_trial = self._scope

    @override
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._life.on_trial = None
        swallowed = self._scope.__exit__(exc_type, exc, traceback)
        if self._scope.cancelled_caught:
            raise UpstreamSilent
        return swallowed
