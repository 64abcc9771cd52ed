"""A kit for testing what is built on this package: no loop for stages, no sleeping.

The scripted source and the recording sink are anyio streams like the real ones, so a
pump can be tested without a socket.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import override

import anyio
from anyio.abc import ByteReceiveStream, ObjectSendStream

from streaming.dialects.reading import Dialect
from streaming.pump import Gate
from streaming.sse import Framer
from streaming.stage import Batch, Event, Stage


class ManualClock:
    """A clock that stands still until it is moved.

    Attributes:
        now: Seconds.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds, as any clock of this package."""
        return self.now

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class ScriptedSource(ByteReceiveStream):
    """A provider's body by script: bytes are read, an exception is raised.

    When the script is over the body has ended; ``hang`` instead waits for ever.
    """

    def __init__(self, *script: bytes | Exception, hang: bool = False) -> None:
        self._script = deque(script)
        self._hang = hang
        self.reads = 0

    @override
    async def receive(self, max_bytes: int = 65_536) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self._script:
            if self._hang:
                await anyio.sleep_forever()
            raise anyio.EndOfStream
        self.reads += 1
        step = self._script.popleft()
        if isinstance(step, Exception):
            raise step
        return step

    @override
    async def aclose(self) -> None:
        self._script.clear()


class RecordingSink(ObjectSendStream[Batch]):
    """A client that keeps what it is sent.

    Attributes:
        batches: One list of wire bytes per ``send``.
        takes: Set: the client reads. Replace it by a new event to have it stop.
    """

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.takes = anyio.Event()
        self.takes.set()

    @property
    def wire(self) -> bytes:
        """Everything, in order."""
        return b"".join(frame for batch in self.batches for frame in batch)

    @override
    async def send(self, item: Batch) -> None:
        await anyio.lowlevel.checkpoint()
        await self.takes.wait()
        self.batches.append([event.frame.wire for event in item])

    @override
    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()


class OpenGate(Gate):
    """A gate that never keeps anybody waiting; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    @property
    @override
    def quiet_to(self) -> int:
        return -1

    @override
    async def pass_to(self, tokens: int) -> None:
        await anyio.lowlevel.checkpoint()
        self.asked.append(tokens)


def events(dialect: Dialect, wire: bytes) -> Batch:
    """The events of a piece of wire, read."""
    return [Event(frame, dialect.read(frame.data)) for frame in Framer().feed(wire)]


def check_stage(
    make: Callable[[], Stage], batch: Batch, *, per_batch: Sequence[int]
) -> list[bytes]:
    """Run a stage over the same events in batches of these sizes.

    Returns:
        What it let through, which must not depend on the sizes.
    """
    stage = make()
    out: Batch = []
    rest = list(batch)
    for size in per_batch:
        out += stage.apply(rest[:size], 0.0)
        del rest[:size]
    out += stage.apply(rest, 0.0)
    out += stage.flush()
    return [event.frame.wire for event in out]
