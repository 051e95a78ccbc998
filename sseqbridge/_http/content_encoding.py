"""Sans-IO decompression of a response's body in bounded slices.

Invariant: no slice is longer than the requested size, however well the body was compressed.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator

from sseqbridge._exceptions import ProtocolError, TruncatedStreamError
from sseqbridge._sse.provider_errors import escaped

__all__ = ["BodyDecoder", "body_decoder"]

logger = logging.getLogger("sseqbridge")

_GZIP = 16 + zlib.MAX_WBITS

_WINDOW_BITS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": zlib.MAX_WBITS}

# The other registered codings: https://www.iana.org/assignments/http-parameters#content-coding
_UNSUPPORTED = frozenset(
    {"aes128gcm", "br", "compress", "dcb", "dcz", "exi", "pack200-gzip", "x-compress", "zstd"}
)


class BodyDecoder:
    """A body that is not compressed: its chunks are cut into slices of at most `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def slices(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the decompressed content of `chunk` in slices. Raises ProtocolError if the body is corrupt."""
        if 0 < len(chunk) <= self.size:
            return iter((chunk,))
        return (chunk[start : start + self.size] for start in range(0, len(chunk), self.size))

    def finish(self) -> None:
        """End the body. Raises TruncatedStreamError if the compressed body is incomplete."""


class _Inflater(BodyDecoder):
    """gzip (of one or more members) and deflate (with or without the zlib header).

    Zeros after the end of a member are padding, as in the gzip tool: some servers compress in blocks of fixed size.
    """

    def __init__(self, size: int, window_bits: int) -> None:
        super().__init__(size)
        self._bits = window_bits
        self._zlib = zlib.decompressobj(window_bits)
        self._started = False
        # The first two bytes: the zlib header, if there is one.
        self._header = b""

    def slices(self, chunk: bytes) -> Iterator[bytes]:
        full = False
        while chunk or full:
            if self._zlib.eof:
                chunk = chunk.lstrip(b"\0")
                if not chunk:
                    return
                self._zlib = zlib.decompressobj(self._bits)
            piece = self._inflate(chunk)
            self._started = True
            if piece:
                yield piece
            # After a full slice, zlib may hold more output although no input is left.
            full = len(piece) == self.size and not self._zlib.eof
            chunk = self._zlib.unconsumed_tail or self._zlib.unused_data

    def _inflate(self, chunk: bytes) -> bytes:
        try:
            piece = self._zlib.decompress(chunk, self.size)
        except zlib.error as exc:
            if self._bits == zlib.MAX_WBITS and len(self._header) < 2:
                # Servers send "deflate" with and without the zlib header.
                self._bits = -zlib.MAX_WBITS
                self._zlib = zlib.decompressobj(self._bits)
                return self._inflate(self._header + chunk)
            raise ProtocolError("the compressed body is corrupt") from exc
        if len(self._header) < 2:
            self._header += chunk[:2]
        return piece

    def finish(self) -> None:
        if self._started and not self._zlib.eof:
            raise TruncatedStreamError("the connection ended before the end of the compressed body")


def body_decoder(content_encoding: str, size: int) -> BodyDecoder:
    """Return the decoder for a Content-Encoding header's value.

    A name that is no registered coding, such as "none" or "utf-8", counts as identity, as in browsers.
    Raises ProtocolError if the coding is a registered one other than identity, gzip and deflate, or if there are
    several.
    """
    name = content_encoding.strip().lower()
    if name in ("", "identity"):
        return BodyDecoder(size)
    names = [part.strip() for part in name.split(",")]
    codings = [part for part in names if part in _WINDOW_BITS or part in _UNSUPPORTED]
    if len(codings) == 1 and codings[0] in _WINDOW_BITS:
        return _Inflater(size, _WINDOW_BITS[codings[0]])
    if codings:
        raise ProtocolError(
            f"the response's Content-Encoding must be identity, gzip or deflate, got {escaped(name)}. "
            'Ask for one of them with headers={"Accept-Encoding": "identity"}.'
        )
    logger.debug("Content-Encoding %s is no registered coding: the body is read as it is", escaped(name))
    return BodyDecoder(size)
