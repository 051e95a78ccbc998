"""Whether an event stream has come to its last event, judged by the bytes that were received last. Pure."""

from __future__ import annotations

import re

from sseqbridge._sse.dialects import dialect_of

__all__ = ["ends_stream"]

_LINE_END = rb"(?:\r\n|\n|\r)"
# A complete event `[DONE]` at the end of the bytes, as OpenAI and most others send it.
_DONE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\][ \t]*%b{2}\Z" % _LINE_END)
_TYPES = [name for dialect in ("openai", "anthropic") for name in dialect_of(dialect).end_events]
# The type of the last event, where its data can be of any size.
_LAST_TYPES = re.compile(rb"event: ?(?:%b)[\r\n]" % b"|".join(re.escape(name.encode()) for name in _TYPES))
_BLANK_LINE = re.compile(rb"%b{2}\Z" % _LINE_END)

# The longest match of _DONE.
_DONE_BYTES = 64


def ends_stream(previous: bytes, newest: bytes) -> bool:
    """Whether the bytes of two reads end with an event that is a provider's last one.

    The bytes are as they were sent: of a compressed stream, this is always False.
    """
    if not newest or not _BLANK_LINE.search((previous[-4:] + newest)[-4:]):
        return False
    if _DONE.search(previous[-_DONE_BYTES:] + newest[-_DONE_BYTES:]):
        return True
    block = (previous + newest).rstrip(b"\r\n")
    begin = max(block.rfind(b"\n\n"), block.rfind(b"\r\n\r\n"), block.rfind(b"\r\r"))
    return _LAST_TYPES.match(block[max(begin, 0) :].lstrip(b"\r\n")) is not None
