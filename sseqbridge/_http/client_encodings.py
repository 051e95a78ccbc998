"""Sans-IO decompression of br and zstd in bounded slices, with the packages that httpx and httpx2 use for them.

The library itself asks for no such body. A client on a BridgeTransport does if one of the packages is installed, and
decodes it; the decoders here serve to look into the body in the meantime.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from sseqbridge._exceptions import ProtocolError

from .content_encoding import BodyDecoder, body_decoder

__all__ = ["client_decoder"]

# The packages in the order in which they are tried. Packages of the same name have the same interface.
_BROTLI = ("brotli", "brotlicffi")
_ZSTD = ("compression.zstd", "backports.zstd")
_ZSTANDARD = "zstandard"

# zstandard has no limit for what it returns at a time. A block of zstd has four bytes or more, and becomes 128 KiB at
# most, so that this becomes 2 MiB at most.
_PIECE_BYTES = 64


def client_decoder(content_encoding: str, size: int) -> BodyDecoder:
    """Return the decoder for the Content-Encoding of a response that a client of httpx or httpx2 reads.

    Raises ProtocolError if no installed package decodes it in slices.
    """
    makers: dict[str, Callable[[int], BodyDecoder | None]] = {"br": _brotli_decoder, "zstd": _zstd_decoder}
    make = makers.get(content_encoding.strip().lower())
    return (None if make is None else make(size)) or body_decoder(content_encoding, size)


def _brotli_decoder(size: int) -> BodyDecoder | None:
    package = _first_installed(_BROTLI)
    # Older versions have no limit for what they return at a time.
    if package is None or not hasattr(package.Decompressor, "can_accept_more_data"):
        return None
    return _BrotliDecoder(size, package)


def _zstd_decoder(size: int) -> BodyDecoder | None:
    package = _first_installed(_ZSTD)
    if package is not None:
        return _ZstdDecoder(size, package)
    package = _first_installed((_ZSTANDARD,))
    return None if package is None else _ZstandardDecoder(size, package)


def _first_installed(names: tuple[str, ...]) -> Any:
    # httpx and httpx2 have imported them already, if they are installed.
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            pass
    return None


class _BrotliDecoder(BodyDecoder):
    def __init__(self, size: int, package: Any) -> None:
        super().__init__(size)
        self._error = package.error
        self._decoder = package.Decompressor()

    def slices(self, chunk: bytes) -> Iterator[bytes]:
        piece = self._decompress(chunk)
        while piece or not self._decoder.can_accept_more_data():
            # The limit is only approximate.
            yield from super().slices(piece)
            piece = self._decompress(b"")

    def _decompress(self, chunk: bytes) -> bytes:
        try:
            piece: bytes = self._decoder.process(chunk, output_buffer_limit=self.size)
        except self._error as exc:
            raise _corrupt() from exc
        return piece


class _ZstdDecoder(BodyDecoder):
    """zstd of one or more frames, with the interface of the standard library since Python 3.14."""

    def __init__(self, size: int, package: Any) -> None:
        super().__init__(size)
        self._package = package
        self._decoder = package.ZstdDecompressor()

    def slices(self, chunk: bytes) -> Iterator[bytes]:
        while True:
            if self._decoder.eof:
                chunk = self._decoder.unused_data or chunk
                if not chunk:
                    return
                self._decoder = self._package.ZstdDecompressor()
            try:
                piece = self._decoder.decompress(chunk, self.size)
            except self._package.ZstdError as exc:
                raise _corrupt() from exc
            if piece:
                yield piece
            elif self._decoder.needs_input:
                return
            chunk = b""


class _ZstandardDecoder(BodyDecoder):
    """zstd of one or more frames, with the package zstandard."""

    def __init__(self, size: int, package: Any) -> None:
        super().__init__(size)
        self._package = package
        self._decoder = package.ZstdDecompressor().decompressobj()

    def slices(self, chunk: bytes) -> Iterator[bytes]:
        for start in range(0, len(chunk), _PIECE_BYTES):
            piece = chunk[start : start + _PIECE_BYTES]
            while piece:
                if self._decoder.eof:
                    self._decoder = self._package.ZstdDecompressor().decompressobj()
                try:
                    data = self._decoder.decompress(piece)
                except self._package.ZstdError as exc:
                    raise _corrupt() from exc
                yield from super().slices(data)
                piece = self._decoder.unused_data if self._decoder.eof else b""


def _corrupt() -> ProtocolError:
    return ProtocolError("the compressed body is corrupt")
