"""The media type of a Content-Type header, extracted as browsers do, and those of streams. Pure.

Proxies and frameworks send the header twice, or as a list. The last valid media type counts.
Source: https://fetch.spec.whatwg.org/#concept-header-extract-mime-type
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from .header_syntax import TOKEN

__all__ = ["Format", "is_event_stream_type", "is_line_type", "media_type"]

# How the body of a stream is read.
Format = Literal["sse", "jsonl"]

# Types of JSON Lines in the field, the first ones of which have a specification.
_LINE_TYPES = frozenset(
    {
        "application/jsonl",
        "application/x-ndjson",
        "application/json-seq",
        "application/ndjson",
        "application/jsonlines",
        "application/json-lines",
        "application/x-jsonl",
        "application/x-jsonlines",
        "application/x-json-stream",
        "application/stream+json",
        "text/jsonl",
    }
)
# geo+json-seq (RFC 8142) and others.
_LINE_SUFFIXES = ("+json-seq", "+jsonl", "+ndjson")

_MEDIA_TYPE = re.compile(rf"[ \t\r\n]*({TOKEN.pattern}/{TOKEN.pattern})[ \t\r\n]*(?:;.*)?", re.DOTALL)
# A value of a list: a comma inside a quoted string does not end it. A string may lack its closing quote.
_VALUE = re.compile(r'(?:[^",]+|"(?:[^"\\]|\\.)*(?:"|\\?\Z))*', re.DOTALL)


def media_type(content_type: str) -> str:
    """Return the media type, in lower case and without parameters; "" if there is no valid one.

    `content_type` is the header's value; values of several headers are joined by commas.
    """
    found = ""
    for value in _values(content_type):
        match = _MEDIA_TYPE.fullmatch(value)
        if match is not None and match[1] != "*/*":
            found = match[1].lower()
    return found


def is_event_stream_type(content_type: str) -> bool:
    """Whether a Content-Type is that of an event stream."""
    return media_type(content_type) == "text/event-stream"


def is_line_type(content_type: str) -> bool:
    """Whether a Content-Type is one of JSON Lines or a JSON text sequence."""
    found = media_type(content_type)
    return found in _LINE_TYPES or found.endswith(_LINE_SUFFIXES)


def _values(content_type: str) -> Iterator[str]:
    if "," not in content_type:
        yield content_type
        return
    at = 0
    while at <= len(content_type):
        match = _VALUE.match(content_type, at)
        assert match is not None
        yield match[0]
        # After the comma.
        at = match.end() + 1
