"""The bytes of the event streams that benchmarks send and parse.

Invariant: they are the same in every run; nothing here is random or reads a clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

__all__ = ["DONE", "EVENT_BYTES", "RECORDINGS", "Recording", "chat_chunk", "chat_stream", "http_chunk", "timed_chunk"]

EVENT_BYTES = 300
DONE = b"data: [DONE]\n\n"

_WORDS = (" the", " of", " a", " stream", " über", " and", "\n", " 42", " “quoted”", " event", ".", " 東京")


def chat_chunk(index: int, created: int = 1_760_000_000) -> bytes:
    """Return one event of OpenAI's chat completions, EVENT_BYTES long with its blank line.

    `created` is a field of the event. "obfuscation" pads the event to its length, as OpenAI does.
    """
    chunk = {
        "id": f"chatcmpl-{index:08d}",
        "object": "chat.completion.chunk",
        "created": created,
        "model": "gpt-4o-mini-2024-07-18",
        "system_fingerprint": "fp_7c28f53a90",
        "choices": [{"index": 0, "delta": {"content": _WORDS[index % len(_WORDS)]}, "finish_reason": None}],
        "obfuscation": "",
    }
    length = len(_event(chunk))
    chunk["obfuscation"] = "x" * max(EVENT_BYTES - length, 0)
    return _event(chunk)


def chat_stream(events: int) -> Iterator[bytes]:
    """Yield `events` chat chunks, without `[DONE]`."""
    return map(chat_chunk, range(events))


def timed_chunk() -> Callable[[int], bytes]:
    """Return a function that makes an HTTP chunk of a chat chunk whose "created" is the send time.

    The function only joins bytes, since it runs between reading the clock and sending.
    """
    placeholder = 10**18
    before, _, after = chat_chunk(0, placeholder).partition(b"%d" % placeholder)

    def chunk_sent_at(nanoseconds: int) -> bytes:
        return http_chunk(b"%b%d%b" % (before, nanoseconds, after))

    return chunk_sent_at


def http_chunk(data: bytes) -> bytes:
    """Frame `data` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded stream: the bytes of each event or comment, and the number of events for a conforming parser."""

    name: str
    pieces: tuple[bytes, ...]
    events: int

    @property
    def size(self) -> int:
        """The number of bytes."""
        return sum(map(len, self.pieces))

    def in_chunks_of(self, size: int) -> list[bytes]:
        """Return the bytes in chunks of `size`, cut anywhere."""
        whole = b"".join(self.pieces)
        return [whole[start : start + size] for start in range(0, len(whole), size)]


def _openai(size: int) -> Recording:
    pieces = tuple(chat_stream(size // EVENT_BYTES))
    return Recording("OpenAI", pieces, len(pieces))


def _anthropic(size: int) -> Recording:
    pieces = tuple(_up_to(size, _anthropic_event))
    return Recording("Anthropic", pieces, len(pieces))


def _anthropic_event(index: int) -> bytes:
    if index % 50 == 49:
        return b'event: ping\ndata: {"type": "ping"}\n\n'
    delta = {"type": "text_delta", "text": _WORDS[index % len(_WORDS)] * 3}
    event = {"type": "content_block_delta", "index": index % 4, "delta": delta}
    return b"event: content_block_delta\n" + _event(event)


def _mixed(size: int) -> Recording:
    pieces = tuple(_up_to(size, _mixed_event))
    return Recording("ids, comments, CRLF, many lines", pieces, sum(b"data" in piece for piece in pieces))


def _mixed_event(index: int) -> bytes:
    """Return an entry of a log, with an id. Every fourth has several lines, every eighth is a heartbeat."""
    if index % 8 == 7:
        return b": heartbeat %d\r\n\r\n" % index
    text = b"lorem ipsum dolor sit amet " * 4
    data = [b"data: line %d of entry %d: %b" % (number, index, text) for number in range(5 if index % 4 == 2 else 1)]
    return b"\r\n".join([b"id: %d" % index, b"event: entry", b"retry: 3000", *data]) + b"\r\n\r\n"


def _up_to(size: int, piece_of: Callable[[int], bytes]) -> Iterator[bytes]:
    total = 0
    for index in count():
        if total >= size:
            return
        piece = piece_of(index)
        total += len(piece)
        yield piece


def _event(value: object) -> bytes:
    return f"data: {json.dumps(value, separators=(',', ':'), ensure_ascii=False)}\n\n".encode()


# Functions that return a recording of about the given number of bytes.
RECORDINGS: tuple[Callable[[int], Recording], ...] = (_openai, _anthropic, _mixed)
