"""The server's side of TLS 1.3 with records that the standard library cannot send.

The ssl module does the handshake; later records are encrypted here (RFC 8446, sections 4.6, 5.2 and 7).
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["Records", "start_tls"]

_APPLICATION_DATA, _HANDSHAKE, _ALERT = 23, 22, 21


def start_tls(connection: socket.socket, context: ssl.SSLContext, keylog: Path) -> Records:
    """Do the handshake, and return the encoder of later records."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context.keylog_filename = str(keylog)
    try:
        session = context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(outgoing.read())
                incoming.write(connection.recv(65_536))
    finally:
        context.keylog_filename = None  # type: ignore[assignment]
    assert not outgoing.pending, "the context is one that sends no tickets of its own"
    cipher: Any = session.cipher()
    [secret] = [
        line.split()[2] for line in keylog.read_text().splitlines() if line.startswith("SERVER_TRAFFIC_SECRET_0")
    ]
    return Records(bytes.fromhex(secret), cipher[0])


class Records:
    """Encodes the records that a server sends after the handshake; send them in the order of the calls."""

    def __init__(self, secret: bytes, cipher: str) -> None:
        self._hash: Callable[..., Any] = hashlib.sha384 if "384" in cipher else hashlib.sha256
        self._key_bytes = 32 if "256_GCM" in cipher else 16
        self._use(secret)

    def data(self, text: bytes) -> bytes:
        return self._record(text, _APPLICATION_DATA)

    def goodbye(self) -> bytes:
        return self._record(b"\x01\x00", _ALERT)

    def ticket(self) -> bytes:
        body = struct.pack("!II", 7200, 1) + b"\x01n" + struct.pack("!H", 4) + b"tick" + b"\0\0"
        return self._record(b"\x04" + struct.pack("!I", len(body))[1:] + body, _HANDSHAKE)

    def key_update(self) -> bytes:
        """Change the server's key, and request that the client changes its own."""
        record = self._record(b"\x18\0\0\x01\x01", _HANDSHAKE)
        self._use(self._expand(b"traffic upd", self._hash().digest_size))
        return record

    def _use(self, secret: bytes) -> None:
        self._secret, self._sent = secret, 0
        self._key, self._iv = AESGCM(self._expand(b"key", self._key_bytes)), self._expand(b"iv", 12)

    def _expand(self, label: bytes, length: int) -> bytes:
        label = b"tls13 " + label
        info = struct.pack("!HB", length, len(label)) + label + b"\0"
        return hmac.new(self._secret, info + b"\x01", self._hash).digest()[:length]

    def _record(self, text: bytes, kind: int) -> bytes:
        head = b"\x17\x03\x03" + struct.pack("!H", len(text) + 17)
        nonce = (int.from_bytes(self._iv, "big") ^ self._sent).to_bytes(12, "big")
        self._sent += 1
        return head + self._key.encrypt(nonce, text + bytes([kind]), head)
