"""Server-sent events, from bytes to frames: a bounded, sans-IO framer.

Laws of this file:

- Bytes in, bytes out. Nothing is decoded, so no code point can be torn.
- Any split of the same bytes gives the same frames.
- A line ends at LF, CR or CRLF and nowhere else; an event ends at an empty line.
- What is relayed is ``data`` and ``event`` lines as they came, then one blank line.
  Comments, ``id``, ``retry`` and unknown fields are consumed: they confuse real SDKs.
- At most ``max_event_bytes`` of one event are ever held.

Grammar: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import msgspec

from streaming.errors import UpstreamFault, UpstreamInvalid

_BOM = b"\xef\xbb\xbf"
_BLANK_LINE = b"\n\n"
_DATA = b"data: "
JOINT = _BLANK_LINE + _DATA
"""Between two payloads of a run."""
_PLAIN_BYTES = len(_DATA) + len(_BLANK_LINE)


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One event; or a run of plain ones, each a single ``data: `` line.

    Attributes:
        data: Its payload: the ``data`` lines joined by LF, never empty. Of a run all
            payloads, with ``JOINT`` between them.
        wire: What is relayed; ends in a blank line.
        events: How many.
    """

    data: bytes
    wire: bytes
    events: int = 1

    def split(self) -> "list[Frame]":
        """Each event of a run by itself."""
        if self.events == 1:
            return [self]
        return [Frame(data, b"data: %b\n\n" % data) for data in self.data.split(JOINT)]

    def with_wire(self, wire: bytes) -> "Frame":
        """The same run with other payloads, still plain."""
        return Frame(wire[6:-2], wire, self.events)

    def with_data(self, data: bytes) -> "Frame":
        """The same event with another payload of one line."""
        if len(self.wire) == len(self.data) + _PLAIN_BYTES:  # no other line has room
            return Frame(data, b"data: %b\n\n" % data)
        kept = [line for line in self.wire.split(b"\n") if line.startswith(b"event")]
        return Frame(data, b"\n".join([*kept, b"data: " + data]) + _BLANK_LINE)


class Framer:
    """Cuts a byte stream into frames.

    Args:
        max_event_bytes: The largest event taken; a larger one is a ``fault``.

    Attributes:
        fault: Set when an event was too large. The frames before it have been
            returned; nothing more will be.
    """

    __slots__ = ("_at_start", "_cr_seen", "_max_event_bytes", "_tail", "fault")

    def __init__(self, max_event_bytes: int = 1_048_576) -> None:
        self._max_event_bytes = max_event_bytes
        self._tail = bytearray()  # Invariant: holds no complete event
        self._at_start = True  # a BOM may still come
        self._cr_seen = False  # the last byte was CR: an LF right now belongs to it
        self.fault: UpstreamFault | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """Events completed by these bytes, in order and one by one."""
        return [one for frame in self.feed_runs(data) for one in frame.split()]

    def feed_runs(self, data: bytes) -> list[Frame]:
        """The same events, plain ones that follow each other in one frame."""
        if self.fault is not None:
            return []
        if self._at_start:
            data = self._without_bom(data)
        if self._cr_seen or b"\r" in data:
            data = self._with_lf_only(data)
        tail = self._tail
        if not tail and self._is_one_plain(data):
            return [Frame(data[6:-2], data)]
        if tail:
            # Only new bytes are searched: an event in many reads costs O(its size).
            searched = len(tail) - 1
            tail += data
            end = tail.rfind(_BLANK_LINE, searched)
            if end < 0:
                self._bound()
                return []
            whole = bytes(tail[:end])
            del tail[: end + 2]
        else:
            end = data.rfind(_BLANK_LINE)
            if end < 0:
                tail += data.lstrip(b"\n")
                self._bound()
                return []
            whole = data[:end]
            tail += data[end + 2 :]
        frames = self._frames(whole)
        self._bound()
        return frames

    def close(self) -> Frame | None:
        """The last event, if the bytes ended without its blank line.

        Whether it is a whole event only its payload can tell.
        """
        tail, self._tail = bytes(self._tail), bytearray()
        return None if self.fault else self._frame(tail)

    def _frames(self, whole: bytes) -> list[Frame]:
        events = whole.count(_BLANK_LINE) + 1
        if self._are_plain(whole, events - 1):
            return [Frame(whole[6:], whole + _BLANK_LINE, events)]
        frames: list[Frame] = []
        for block in whole.split(_BLANK_LINE):
            frame = self._frame(block)
            if frame is None:
                continue
            if len(frame.wire) - 2 > self._max_event_bytes:
                self._overflow()
                break
            frames.append(frame)
        return frames

    def _is_one_plain(self, data: bytes) -> bool:
        """Whether this is one event of one ``data`` line, as paced streams bring."""
        return (
            data.count(b"\n") == 2  # noqa: PLR2004 - the blank line's
            and data.endswith(_BLANK_LINE)
            and data.startswith(_DATA)
            and _PLAIN_BYTES < len(data) <= self._max_event_bytes
        )

    def _are_plain(self, whole: bytes, joints: int) -> bool:
        """Whether every event is one ``data`` line, as nearly always."""
        return (
            whole.startswith(_DATA)
            and whole.count(JOINT) == joints
            and whole.count(b"\n") == 2 * joints
            and _DATA + b"\n" not in whole
            and len(_DATA) < len(whole) <= self._max_event_bytes
            and not whole.endswith(b"\n" + _DATA)
        )

    @staticmethod
    def _frame(block: bytes) -> Frame | None:
        payload: list[bytes] = []
        kept: list[bytes] = []
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            if field == b"data":
                payload.append(value.removeprefix(b" "))
                kept.append(line)
            elif field == b"event":
                kept.append(line)
        data = b"\n".join(payload)
        return Frame(data, b"\n".join(kept) + _BLANK_LINE) if data else None

    def _without_bom(self, data: bytes) -> bytes:
        start = bytes(self._tail) + data
        self._tail.clear()
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._tail += start
            return b""
        self._at_start = False
        return start.removeprefix(_BOM)

    def _with_lf_only(self, data: bytes) -> bytes:
        if not data:
            return data
        if self._cr_seen and data.startswith(b"\n"):
            data = data[1:]
            self._cr_seen = False
            if not data:
                return data
        self._cr_seen = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _bound(self) -> None:
        """Keep the tail within an event's size: forget what would not be relayed."""
        if len(self._tail) <= self._max_event_bytes:
            return
        *lines, last = bytes(self._tail).split(b"\n")
        kept = [line for line in lines if line.startswith((b"data", b"event"))]
        kept.append(b":" if last.startswith(b":") else last)
        self._tail = bytearray(b"\n".join(kept))
        # One LF may already be there that will turn out to be the event's end.
        if len(self._tail.removesuffix(b"\n")) > self._max_event_bytes:
            self._overflow()

    def _overflow(self) -> None:
        self._tail.clear()
        self.fault = UpstreamInvalid("The provider sent an event that is too large.")
