"""Decompression of br and zstd: bounded slices, no bytes held back, typed errors, and packages that are missing."""

from __future__ import annotations

import gzip
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import brotli
import pytest
import zstandard

from sseqbridge._exceptions import ProtocolError
from sseqbridge._http.client_encodings import client_decoder
from sseqbridge._http.content_encoding import BodyDecoder

pytestmark = pytest.mark.configurations("default")

SIZE = 64

BODY = b"".join(b"data: %d\n\n" % number for number in range(500))

Hide = Callable[..., None]

zstd: Any = importlib.import_module("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Hide:
    """A function of names of packages, which makes their import fail."""

    def made(*names: str) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return made


@pytest.fixture(params=["brotli", "compression.zstd", "zstandard"])
def kind(request: pytest.FixtureRequest, hide: Hide) -> Iterator[str]:
    """The package that decodes."""
    if request.param == "zstandard":
        hide("compression", "compression.zstd", "backports.zstd")
    return request.param  # type: ignore[no-any-return]


def decoder(kind: str, size: int = SIZE) -> BodyDecoder:
    return client_decoder("br" if kind == "brotli" else "zstd", size)


def compress(kind: str, body: bytes = BODY) -> bytes:
    compressed: bytes = brotli.compress(body) if kind == "brotli" else zstd.compress(body)
    return compressed


def flushed(kind: str) -> Callable[[bytes], bytes]:
    """Return a function that compresses each part so that it can be decompressed at once."""
    if kind == "brotli":
        encoder: Any = brotli.Compressor()
        return lambda part: encoder.process(part) + encoder.flush()
    made = zstandard.ZstdCompressor().compressobj()
    return lambda part: made.compress(part) + made.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


def read(body: BodyDecoder, *chunks: bytes) -> bytes:
    """Decompress chunks, and check that no slice is empty or too long."""
    slices = [piece for chunk in chunks for piece in body.slices(chunk)]
    assert all(0 < len(piece) <= SIZE for piece in slices)
    return b"".join(slices)


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_body_is_decompressed_at_every_split(kind: str, step: int) -> None:
    data = compress(kind)
    assert read(decoder(kind), *(data[at : at + step] for at in range(0, len(data), step))) == BODY


@pytest.mark.parametrize("length", [0, 1, SIZE, SIZE + 1, 1000])
def test_flushed_bytes_are_returned_at_once(kind: str, length: int) -> None:
    body, compressed = decoder(kind), flushed(kind)
    for _ in range(3):
        assert read(body, compressed(BODY[:length])) == BODY[:length]


@pytest.mark.parametrize("kind", ["compression.zstd", "zstandard"], indirect=True)
@pytest.mark.parametrize("step", [1, 1000])
def test_frames_of_zstd_are_one_body(kind: str, step: int) -> None:
    data = compress(kind, BODY[:100]) + compress(kind, b"") + compress(kind, BODY[100:])
    assert read(decoder(kind), *(data[at : at + step] for at in range(0, len(data), step))) == BODY


def test_corrupt_body_is_a_protocol_error(kind: str) -> None:
    with pytest.raises(ProtocolError, match="corrupt") as raised:
        read(decoder(kind), b"data: not compressed at all\n\n")
    assert raised.value.__cause__ is not None


@pytest.mark.slow
def test_bomb_is_decompressed_lazily(kind: str) -> None:
    slices = decoder(kind, 65536).slices(compress(kind, bytes(10_000_000)))
    assert all(0 < len(next(slices)) <= 65536 for _ in range(100))


def test_piece_of_zstd_is_small_however_well_it_is_compressed(hide: Hide) -> None:
    hide("compression", "compression.zstd", "backports.zstd")
    # A frame with a window of 128 KiB, of blocks of a repeated byte: RFC 8878, section 3.1.1.
    frame = bytes.fromhex("28b52ffd0038")
    block = (131_072 << 3 | 0b010).to_bytes(3, "little") + b"x"
    body = client_decoder("zstd", 64 * 1024 * 1024)
    assert max(map(len, body.slices(frame + block * 200))) <= 17 * 131_072


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", " GZIP "])
def test_other_encodings_are_those_of_the_library(encoding: str) -> None:
    assert read(client_decoder(encoding, SIZE), gzip.compress(BODY)) == BODY
    assert read(client_decoder("", SIZE), BODY) == BODY


def test_encoding_without_a_package_is_a_protocol_error(hide: Hide) -> None:
    hide("brotli", "brotlicffi", "compression", "compression.zstd", "backports.zstd", "zstandard")
    for encoding in ("br", "zstd"):
        with pytest.raises(ProtocolError, match="must be identity, gzip or deflate"):
            client_decoder(encoding, SIZE)


def test_brotli_without_a_limit_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions before 1.2 return all of what they make of a chunk."""

    class Old:
        Decompressor = object

    monkeypatch.setitem(sys.modules, "brotli", Old)
    with pytest.raises(ProtocolError):
        client_decoder("br", SIZE)
