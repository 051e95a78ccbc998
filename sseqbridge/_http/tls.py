"""TLS of one connection, between bytes that came in and bytes that go out; it does no I/O.

The event loops have TLS of their own. uvloop's, and asyncio's before 3.11, drop what has come in
and was not read yet when the peer ends the connection, and each closes in its own way. Here every
byte that comes in is decrypted at once, so that there is nothing to drop.
"""

from __future__ import annotations

import ssl

__all__ = ["TlsSession"]

# What one TLS record holds at most, and so one read.
_RECORD_BYTES = 16 * 1024

# What OpenSSL is given at a time: it keeps room for the most that it ever held.
_SLICE_BYTES = 32 * 1024


class TlsSession:
    """A client's side of TLS: `receive` what comes in, send what `to_send` returns."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        """Begin a handshake with `host`, whose certificate is checked as the context says.

        Raises ValueError where that can be no host's name.
        """
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.is_established = False
        # The peer has said that nothing more will come.
        self.ended = False
        # What ended the session otherwise: a certificate that is not trusted, a record that is none.
        self.error: ssl.SSLError | None = None
        self.receive(b"")

    def to_send(self) -> bytes:
        """Return what is to be sent next, b"" for nothing; ask after every other call."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def receive(self, data: bytes) -> bytes:
        """Take what came in, and return what it says: as much as is good before `ended` or `error`."""
        parts: list[bytes] = []
        for start in range(0, max(1, len(data)), _SLICE_BYTES):
            # What comes after the end means nothing, and kept it would grow for as long as it comes.
            if self.ended or self.error is not None:
                break
            self._incoming.write(data[start : start + _SLICE_BYTES])
            self._read_into(parts)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_into(self, parts: list[bytes]) -> None:
        incoming, session = self._incoming, self.ssl_object
        try:
            if not self.is_established:
                session.do_handshake()
                self.is_established = True
            # A read of nothing raises, which costs more than to look.
            while incoming.pending or session.pending():
                part = session.read(_RECORD_BYTES)
                if not part:
                    self.ended = True
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass  # A record that is not whole yet, or the handshake's next part.
        except ssl.SSLError as exc:
            # Without the frames, which would hold this.
            self.error = exc.with_traceback(None)

    def encrypt(self, data: bytes) -> bytes:
        """Return what sends `data`.

        Raises ssl.SSLError where nothing can be sent any more.
        """
        self.ssl_object.write(data)
        return self.to_send()
