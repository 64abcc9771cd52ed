"""The same connection over TLS.

Not asyncio's own TLS: behind a paused reader it takes in up to 256 KiB more than it was
asked for, and uvloop's drops what it had taken in when the server then closes (0.23).
Here what one network read brought is decrypted and buffered before the next, so the
promises of ``connection`` hold unchanged.
"""

import ssl
from typing import override

import httpx

from gateway.providers.transport.connection import (
    READ_BYTES,
    Connection,
    State,
    Wire,
)
from gateway.providers.transport.pool import Origin


class TlsConnection(Connection):
    """The protocol of an encrypted connection; OPENING until TLS is agreed."""

    def __init__(self, wire: Wire, origin: Origin, context: ssl.SSLContext) -> None:
        super().__init__(wire, origin)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=origin.host
        )

    @override
    def write(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    @override
    def buffer_updated(self, nbytes: int) -> None:
        self._incoming.write(self._wire.scratch[:nbytes])
        try:
            if self.state is State.OPENING:
                self._shake_hands()
            self._decrypt()
        except ssl.SSLWantReadError:
            pass  # the rest of a record is still on its way
        except ssl.SSLCertVerificationError as error:
            self._close(httpx.ReadError(error.verify_message))
        except ssl.SSLError as error:
            self._close(httpx.ReadError(error.reason or "TLS failed"))
        self._flush()

    @override
    def eof_received(self) -> None:
        # Without TLS's own farewell anyone on the path may have cut the answer short.
        self._close(httpx.ReadError("closed without TLS close_notify"))

    @override
    def _ready(self) -> None:
        try:
            self._shake_hands()
        except ssl.SSLWantReadError:
            self._flush()

    def _shake_hands(self) -> None:
        self._tls.do_handshake()
        self.state = State.IDLE
        self._wake()

    def _decrypt(self) -> None:
        while self._incoming.pending or self._tls.pending():
            data = self._tls.read(READ_BYTES)
            if not data:  # close_notify
                self._end_input()
                return
            self._feed(data)

    def _flush(self) -> None:
        if self._outgoing.pending:
            super().write(self._outgoing.read())
