"""Sans-IO TLS for one client connection: received bytes in, decrypted bytes out, and the other way round.

It replaces the TLS of the event loops, which uvloop, and asyncio before 3.11, implement so that received but unread
data is dropped when the peer ends the connection. Invariant: every received byte is decrypted at once.
"""

from __future__ import annotations

import ssl

__all__ = ["TlsSession"]

# The most that one TLS record holds, and so the most that one read returns.
_RECORD_BYTES = 16 * 1024

# The most that is passed to OpenSSL at a time: it never shrinks its buffer.
_SLICE_BYTES = 32 * 1024


class TlsSession:
    """The client's side of a TLS connection.

    `ended` is True after the peer's close-notify. `error` is the fault that ended the session otherwise: an untrusted
    certificate, an invalid record.
    """

    def __init__(self, context: ssl.SSLContext, host: str, below: TlsSession | None = None) -> None:
        """Begin a handshake with `host`; the context decides how its certificate is checked.

        `below` is the session with a proxy that carries this one. Raises ValueError if `host` cannot be a host name.
        """
        self._below = below
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.is_established = False
        self.ended = False
        self.error: ssl.SSLError | None = None
        self.receive(b"")

    def to_send(self) -> bytes:
        """Return the bytes to send next, b"" if there are none. Call it after every other method."""
        data = self._outgoing.read() if self._outgoing.pending else b""
        if self._below is None:
            return data
        return self._below.encrypt(data) if data else self._below.to_send()

    def receive(self, data: bytes) -> bytes:
        """Return received bytes decrypted, up to the end or fault that sets `ended` or `error`."""
        parts: list[bytes] = []
        if self._below is not None:
            data = self._below.receive(data)
            self.error = self._below.error
        for start in range(0, max(1, len(data)), _SLICE_BYTES):
            # Bytes after the end have no meaning, and would fill the buffer.
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
            # Looking first is cheaper than a read that raises SSLWantReadError.
            while incoming.pending or session.pending():
                part = session.read(_RECORD_BYTES)
                if not part:
                    self.ended = True
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass  # The record, or the handshake, needs more bytes.
        except ssl.SSLError as exc:
            # Without its traceback, whose frames would make a reference cycle.
            self.error = exc.with_traceback(None)

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Return `data` encrypted. Raises ssl.SSLError if TLS cannot send (any more)."""
        self.ssl_object.write(data)
        return self.to_send()
