"""The media type of a Content-Type header, sent once, twice, as a list, or malformed."""

from __future__ import annotations

import httpx
import pytest

from sseqbridge._engine.responses import is_event_stream
from sseqbridge._http.media_types import media_type

pytestmark = pytest.mark.configurations("default")


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        ("text/event-stream", "text/event-stream"),
        ("TEXT/Event-Stream; charset=utf-8", "text/event-stream"),
        (" \ttext/event-stream \t;x", "text/event-stream"),
        ("text/event-stream;", "text/event-stream"),
        # The last valid value counts.
        ("text/event-stream, text/event-stream", "text/event-stream"),
        ("text/event-stream; charset=utf-8, text/event-stream", "text/event-stream"),
        ("text/html, text/event-stream;charset=utf-8", "text/event-stream"),
        ("text/event-stream, text/html", "text/html"),
        ("text/event-stream, */*", "text/event-stream"),
        ("text/event-stream, bogus", "text/event-stream"),
        ("text/event-stream, text/plain x", "text/event-stream"),
        (",text/event-stream,", "text/event-stream"),
        # A comma in a quoted string, also one that is not closed, is no separator.
        ('text/event-stream;a="b,text/html"', "text/event-stream"),
        ('text/event-stream;a="b\\",text/html"', "text/event-stream"),
        ('text/event-stream;a="b,text/html', "text/event-stream"),
        ('text/event-stream;a="b\\', "text/event-stream"),
        ('text/event-stream;a="b", text/html;c=","', "text/html"),
        ('text/event-stream;a="b"c, text/html', "text/html"),
        # None is valid.
        ("", ""),
        (",,", ""),
        ("text", ""),
        ("text/", ""),
        ("/event-stream", ""),
        ("text /event-stream", ""),
        ("text/event stream", ""),
        ("text/event-stream charset=utf-8", ""),
        ("text/event-stream\xa0", ""),
        ("*/*", ""),
        ('"text/event-stream"', ""),
    ],
)
def test_media_type_is_extracted_as_in_browsers(sent: str, found: str) -> None:
    assert media_type(sent) == found


def test_values_of_several_headers_are_one_list() -> None:
    headers = [("Content-Type", "text/html"), ("content-type", "text/event-stream")]
    assert is_event_stream(httpx.Headers(headers))
    assert not is_event_stream(httpx.Headers(headers[::-1]))


def test_long_header_is_read_in_linear_time() -> None:
    assert media_type('"' * 50_000 + "," * 50_000) == ""
    assert media_type("text/event-stream;a=" + "\\" * 100_000) == "text/event-stream"
