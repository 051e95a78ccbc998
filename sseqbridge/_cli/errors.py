"""The errors of commands, and how they are described to someone who sees the command line's options alone.

Plain functions of their arguments.
"""

from __future__ import annotations

import http.client
import json
import re
from html.parser import HTMLParser

from sseqbridge._exceptions import (
    ContentTypeError,
    DecodeError,
    ResponseError,
    StreamTimeoutError,
)
from sseqbridge._http.media_types import is_event_stream_type, is_line_type
from sseqbridge._sse.provider_errors import quoted

__all__ = ["CommandError", "body_text", "describe"]

# How much of an HTML page is read, and how much of its text is shown, in characters.
_READ_CHARACTERS = 65_536
_SHOWN_CHARACTERS = 300
_HTML_START = re.compile(r"\s*(?:<!--.*?-->\s*|<\?xml.*?\?>\s*)*<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_SILENT_TAGS = frozenset({"script", "style", "template", "noscript", "svg"})


class CommandError(Exception):
    """Raised if a command fails for a reason that has no exception in the library. The text is the message."""


def describe(error: Exception) -> str:
    """Return an error as text that names options of the command line instead of arguments of request_sse."""
    if isinstance(error, ContentTypeError):
        content_type = error.headers.get("content-type", "no Content-Type")
        if is_event_stream_type(content_type):
            return f"the response is {quoted(content_type)}, not JSON Lines; leave out --jsonl"
        if is_line_type(content_type):
            return f"the response is {quoted(content_type)}, not text/event-stream; `sseqbridge URL --jsonl` prints it"
        return f"the response is {quoted(content_type)}, not a stream; --any-content-type reads it anyway"
    if isinstance(error, ResponseError):
        return f"the upstream answered {error.status} {http.client.responses.get(error.status, '')}".rstrip()
    if isinstance(error, StreamTimeoutError):
        return f"{error.description}; --timeout sets this limit"
    if isinstance(error, DecodeError):
        cause = error.__cause__
        where = f" ({cause.msg} at character {cause.pos})" if isinstance(cause, json.JSONDecodeError) else ""
        return f'the data of a "{quoted(error.event.event)}" event is not JSON{where}; --text prints it unchanged'
    return str(error)


def body_text(error: ResponseError) -> str:
    """Return the body of a response as text; of an HTML page the beginning of its text, without markup."""
    text = error.text
    content_type = error.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_html = content_type in _HTML_TYPES or _HTML_START.match(text[:_SHOWN_CHARACTERS])
    if not (text and is_html):
        return text
    page = _Page()
    page.feed(text[:_READ_CHARACTERS])
    shown = page.text()
    if len(shown) > _SHOWN_CHARACTERS:
        shown = f"{shown[:_SHOWN_CHARACTERS]}..."
    return f"{shown} [from an HTML page of {len(error.body):,} bytes]".lstrip()


class _Page(HTMLParser):
    """Collects the text of an HTML page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._title: list[str] = []
        self._parts: list[str] = []
        self._is_title = False
        # The number of open elements without visible text.
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._is_title = tag == "title"
        self._silent += tag in _SILENT_TAGS

    def handle_endtag(self, tag: str) -> None:
        self._is_title = False
        if tag in _SILENT_TAGS and self._silent:
            self._silent -= 1

    def handle_data(self, data: str) -> None:
        if not self._silent:
            (self._title if self._is_title else self._parts).append(data)

    def text(self) -> str:
        """Return the title, and the text if it does not repeat the title, in one line."""
        title, text = (" ".join(" ".join(parts).split()) for parts in (self._title, self._parts))
        return text if text.startswith(title) else f"{title}: {text}".rstrip(": ")
