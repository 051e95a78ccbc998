"""Decompression: bounded slices, no bytes held back, and typed errors for every fault."""

from __future__ import annotations

import gzip
import logging
import random
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sseqbridge._exceptions import ProtocolError, TruncatedStreamError
from sseqbridge._http.content_encoding import BodyDecoder, body_decoder

pytestmark = pytest.mark.configurations("default")

SIZE = 64

BODY = b"".join(b"data: %d\n\n" % number for number in range(500))

WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15, "deflate without the zlib header": -15}


def compressor(kind: str) -> zlib._Compress:
    return zlib.compressobj(9, zlib.DEFLATED, WINDOW_BITS[kind])


def compress(kind: str, body: bytes = BODY) -> bytes:
    made = compressor(kind)
    return made.compress(body) + made.flush()


def decoder(kind: str, size: int = SIZE) -> BodyDecoder:
    return body_decoder(kind.partition(" ")[0], size)


def read(body: BodyDecoder, *chunks: bytes) -> bytes:
    """Decompress chunks, and check that no slice is empty or too long."""
    slices = [piece for chunk in chunks for piece in body.slices(chunk)]
    assert all(0 < len(piece) <= SIZE for piece in slices)
    return b"".join(slices)


compressed = pytest.mark.parametrize("kind", WINDOW_BITS)


@pytest.mark.parametrize("header", ["", "identity", " Identity "])
def test_uncompressed_body_is_cut_into_slices(header: str) -> None:
    body = body_decoder(header, 4)
    assert list(body.slices(b"abcdefghij")) == [b"abcd", b"efgh", b"ij"]
    assert list(body.slices(b"abcd")) == [b"abcd"]
    assert list(body.slices(b"")) == []
    body.finish()


@pytest.mark.parametrize("header", ["gzip", "GZIP", " gzip ", "x-gzip"])
def test_content_encoding_is_case_insensitive(header: str) -> None:
    assert read(body_decoder(header, SIZE), gzip.compress(BODY)) == BODY


@compressed
def test_compressed_body_is_decompressed(kind: str) -> None:
    body = decoder(kind)
    assert read(body, compress(kind)) == BODY
    body.finish()


@compressed
def test_compressed_body_is_decompressed_byte_by_byte(kind: str) -> None:
    body = decoder(kind)
    data = compress(kind)
    assert read(body, *(data[at : at + 1] for at in range(len(data)))) == BODY
    body.finish()


@compressed
def test_compressed_body_is_decompressed_at_every_split(kind: str) -> None:
    data = compress(kind, BODY[:200])
    for cut in range(len(data) + 1):
        body = decoder(kind)
        assert read(body, data[:cut], b"", data[cut:]) == BODY[:200]
        body.finish()


@compressed
@pytest.mark.parametrize("length", [0, 1, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE])
def test_body_of_any_length_is_decompressed(kind: str, length: int) -> None:
    body = decoder(kind)
    assert read(body, compress(kind, BODY[:length])) == BODY[:length]
    body.finish()


@compressed
@pytest.mark.parametrize("length", [1, SIZE, 2 * SIZE, 1000])
def test_flushed_bytes_are_returned_at_once(kind: str, length: int) -> None:
    made = compressor(kind)
    body = decoder(kind)
    noise = random.Random(1)
    for _ in range(20):
        event = noise.randbytes(length)
        assert read(body, made.compress(event) + made.flush(zlib.Z_SYNC_FLUSH)) == event


@compressed
def test_no_bytes_are_held_back(kind: str) -> None:
    unbounded = zlib.decompressobj(WINDOW_BITS[kind])
    body = decoder(kind)
    # A byte can expand to hundreds, and zlib holds back what exceeds the slice.
    data = compress(kind, bytes(10_000) + BODY)
    for byte in (data[at : at + 1] for at in range(len(data))):
        assert read(body, byte) == unbounded.decompress(byte)


@pytest.mark.slow
@compressed
def test_bomb_is_decompressed_lazily_in_bounded_slices(kind: str) -> None:
    body = decoder(kind, 65536)
    total = 0
    for piece in body.slices(compress(kind, bytes(50_000_000))):
        assert len(piece) <= 65536
        total += len(piece)
    assert total == 50_000_000
    body.finish()


@pytest.mark.parametrize("kind", ["gzip", "x-gzip"])
def test_several_members_are_one_body(kind: str) -> None:
    members = compress(kind, BODY[:100]) + compress(kind, b"") + compress(kind, BODY[100:])
    for chunks in ([members], [members[at : at + 1] for at in range(len(members))]):
        body = decoder(kind)
        assert read(body, *chunks) == BODY
        body.finish()


@pytest.mark.slow
@given(st.lists(st.binary(max_size=200), max_size=4), st.integers(1, 50))
def test_any_members_in_any_chunks_are_one_body(parts: list[bytes], size: int) -> None:
    data = b"".join(map(gzip.compress, parts))
    body = decoder("gzip")
    assert read(body, *(data[at : at + size] for at in range(0, len(data), size))) == b"".join(parts)
    body.finish()


@pytest.mark.slow
@given(st.binary(max_size=300), st.integers(1, 50), st.sampled_from(list(WINDOW_BITS)), st.integers(0, 9))
def test_any_body_in_any_chunks_is_decompressed(sent: bytes, size: int, kind: str, level: int) -> None:
    made = zlib.compressobj(level, zlib.DEFLATED, WINDOW_BITS[kind])
    data = made.compress(sent) + made.flush()
    body = decoder(kind)
    assert read(body, *(data[at : at + size] for at in range(0, len(data), size))) == sent
    body.finish()


def flip_a_byte(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"data: not compressed at all\n\n",
        lambda data: flip_a_byte(data, 0),
        lambda data: flip_a_byte(data, len(data) - 6),
        lambda data: data + b"behind the end",
    ],
    ids=["plain text", "its first byte", "its checksum", "more behind the end"],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_corrupt_body_is_a_protocol_error(spoil: Callable[[bytes], bytes], size: int) -> None:
    data = spoil(compress("gzip"))
    body = decoder("gzip")
    with pytest.raises(ProtocolError, match="corrupt") as raised:
        read(body, *(data[at : at + size] for at in range(0, len(data), size)))
    assert isinstance(raised.value.__cause__, zlib.error)


def test_body_in_neither_form_of_deflate_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="corrupt"):
        read(decoder("deflate"), b"data: not compressed at all\n\n")


def test_corruption_behind_a_zlib_header_is_a_protocol_error() -> None:
    data = compress("deflate")
    body = decoder("deflate")
    with pytest.raises(ProtocolError, match="corrupt"):
        read(body, data[:100], flip_a_byte(data, len(data) - 1)[100:])


@compressed
def test_incomplete_body_is_a_truncated_stream(kind: str) -> None:
    body = decoder(kind)
    read(body, compress(kind)[:-1])
    with pytest.raises(TruncatedStreamError):
        body.finish()


def test_incomplete_gzip_member_is_a_truncated_stream() -> None:
    body = decoder("gzip")
    assert read(body, gzip.compress(b"a") + gzip.compress(b"b")[:10]) == b"a"
    with pytest.raises(TruncatedStreamError):
        body.finish()


@compressed
def test_empty_body_is_no_truncated_stream(kind: str) -> None:
    body = decoder(kind)
    assert read(body) == b""
    body.finish()


@pytest.mark.parametrize("header", ["none", "utf-8", "UTF8", "8bit", "nonsense", "none, identity", ","])
def test_name_that_is_no_coding_counts_as_identity(caplog: pytest.LogCaptureFixture, header: str) -> None:
    caplog.set_level(logging.DEBUG, "sseqbridge")
    assert read(body_decoder(header, SIZE), BODY) == BODY
    assert f'"{header.lower()}"' in caplog.text


@pytest.mark.parametrize("text", ["\x1b[31m\x9b", "x" * 50_000])
def test_quoted_encoding_is_short_and_printable(caplog: pytest.LogCaptureFixture, text: str) -> None:
    caplog.set_level(logging.DEBUG, "sseqbridge")
    body_decoder(text, SIZE)
    with pytest.raises(ProtocolError) as raised:
        body_decoder(f"br, {text}", SIZE)
    for message in (str(raised.value), caplog.messages[0]):
        assert message.isprintable()
        assert len(message) < 500


@pytest.mark.parametrize("header", ["utf-8, gzip", "gzip, none", "gzip,"])
def test_name_that_is_no_coding_does_not_hide_a_coding(header: str) -> None:
    assert read(body_decoder(header, SIZE), gzip.compress(BODY)) == BODY


@compressed
@pytest.mark.parametrize("padding", [1, SIZE, 1000])
def test_zeros_after_the_end_are_padding(kind: str, padding: int) -> None:
    data = compress(kind) + bytes(padding)
    for chunks in ([data], [data[at : at + 1] for at in range(len(data))]):
        body = decoder(kind)
        assert read(body, *chunks) == BODY
        body.finish()


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_zeros_between_gzip_members_are_padding(size: int) -> None:
    data = gzip.compress(BODY[:100]) + bytes(512) + gzip.compress(BODY[100:]) + bytes(3)
    body = decoder("gzip")
    assert read(body, *(data[at : at + size] for at in range(0, len(data), size))) == BODY
    body.finish()


@pytest.mark.parametrize("header", ["br", "zstd", "gzip, br", "none, br", "gzip, gzip", "deflate, gzip", "compress"])
def test_unsupported_encoding_is_a_protocol_error_with_advice(header: str) -> None:
    with pytest.raises(ProtocolError, match=r"Accept-Encoding.*identity") as raised:
        body_decoder(header, SIZE)
    assert f'"{header}"' in str(raised.value)
