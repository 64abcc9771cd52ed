"""The client port: whoever asked, as far as an exchange needs to know."""

from abc import abstractmethod
from collections.abc import Mapping

from anyio.abc import ObjectSendStream

from streaming.errors import Fault
from streaming.stage import Batch


class Client(ObjectSendStream[Batch]):
    """Where an answer goes.

    ``send`` relays a batch, and commits status 200 with the first; it returns when the
    client's side has room for more. ``aclose`` ends a stream properly.
    """

    @property
    @abstractmethod
    def started(self) -> bool:
        """Whether a status line has been sent."""

    @property
    @abstractmethod
    def answered(self) -> bool:
        """Whether the answer has ended, in whatever way: nothing can be added."""

    @abstractmethod
    def describe(self, headers: Mapping[str, str]) -> None:
        """Add headers to the answer; too late once it has started."""

    @abstractmethod
    async def answer(self, headers: Mapping[str, str], body: bytes) -> None:
        """Give a whole answer, status 200."""

    @abstractmethod
    async def fail(self, fault: Fault) -> None:
        """Say what went wrong: a real status, or after the start an error frame.

        A whole answer that is under way is cut: nothing can be said in it.
        """

    @abstractmethod
    def abort(self) -> None:
        """Cut the connection."""

    @abstractmethod
    def beat(self) -> None:
        """Send a heartbeat, if one may be sent now."""

    def unsent_bytes(self) -> int:
        """What of the answer it has not taken; 0 where nobody can tell."""
        return 0
