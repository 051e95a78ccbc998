"""The headers of a relay's response."""

from __future__ import annotations

from typing import Any

import pytest

from sseqbridge import (
    UsageError,
)
from sseqbridge.relay._response import event_stream_headers


def test_event_stream_headers_include_the_callers() -> None:
    assert event_stream_headers({"X-Mine": "1", "cache-control": "private"}) == {
        "Content-Type": "text/event-stream; charset=utf-8",
        "X-Accel-Buffering": "no",
        "Content-Encoding": "identity",
        "X-Mine": "1",
        "cache-control": "private",
    }


@pytest.mark.parametrize("name", ["Connection", "transfer-encoding", "Content-Length", "Keep-Alive"])
def test_hop_by_hop_headers_raise_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match=f"must not contain '{name}', which the web server sets"):
        event_stream_headers({name: "x"})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a\r\nb: c", "one line of latin-1 text without control characters, got other text"),
        ("a\0", "one line of latin-1 text without control characters, got other text"),
        ("\u20ac", "one line of latin-1 text without control characters, got other text"),
        (5, "a str, got int"),
        (["a"], "a str, got list"),
    ],
)
def test_value_of_a_header_must_be_latin_1_text(value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"the value of 'X-A' must be {message}$"):
        event_stream_headers({"X-A": value})


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("X-A: 1\r\nSet-Cookie", "one with another character"),
        ("", "an empty one"),
        ("X A", "one with another character"),
        ("X\u00fc", "one with another character"),
        ("X-A:", "one with another character"),
        (5, "int"),
    ],
)
def test_name_of_a_header_must_be_valid(name: Any, got: str) -> None:
    with pytest.raises(UsageError, match=f"`headers`: a name must be .*, got {got}$"):
        event_stream_headers({name: "x"})


def test_headers_must_be_a_mapping_and_the_last_counts() -> None:
    with pytest.raises(UsageError, match="mapping"):
        event_stream_headers([("X-A", "1")])  # type: ignore[arg-type]
    merged = event_stream_headers({"x-a": "1", "X-A": "2", "cache-control": "private", "CACHE-CONTROL": "no-store"})
    assert merged["X-A"] == "2"
    assert [name for name in merged if name.lower() in ("x-a", "cache-control")] == ["X-A", "CACHE-CONTROL"]
