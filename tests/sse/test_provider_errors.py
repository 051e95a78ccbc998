"""Error objects of providers: which JSON is one, its message, and how a message quotes it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sseqbridge import ProtocolError, UpstreamError
from sseqbridge._sse.provider_errors import is_error, message_of, quoted, unframed_body_error, upstream_error

DEEP: Any = "lost"
for _ in range(2000):
    DEEP = {"error": DEEP}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text", "plain text"),
        ("a\r\nb\tc", "a  b c"),
        ("\x1b[31mred\x1b[0m", " [31mred [0m"),
        ("\x00\x7f\x85\u2028\u202e\ufeff\ud800.", " " * 7 + "."),
        ("Grüße, 世界", "Grüße, 世界"),
        ("x" * 300, "x" * 200),
    ],
)
def test_quotation_is_one_printable_line(text: str, expected: str) -> None:
    assert quoted(text) == expected


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("busy", "busy"),
        ({"error": "busy"}, "busy"),
        ({"error": {"message": "busy", "type": "x"}}, "busy"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, "busy"),
        ({"message": "busy"}, "busy"),
        ({"detail": "busy"}, "busy"),
        ({"detail": [{"loc": ["body"], "msg": "field required"}]}, "field required"),
        ({"error": "invalid_client", "error_description": "unknown client"}, "unknown client"),
        ({"type": "about:blank", "title": "Forbidden", "detail": "out of credit"}, "out of credit"),
        ({"title": "Forbidden"}, "Forbidden"),
        ({"errors": [{"message": "busy"}]}, "busy"),
        ([{"error": {"code": 400, "message": "no key"}}], "no key"),
        ({"error": {"message": ""}, "message": "busy"}, "busy"),
        ({"error": "ValueError", "message": "boom\n"}, "ValueError: boom"),
        ({"detail": {"error": "ValueError", "message": "boom"}}, "ValueError: boom"),
        ({"error": "busy", "message": "busy, try later"}, "busy, try later"),
        ({"error": "busy", "message": " "}, "busy"),
        ({"error": " ", "message": "busy"}, "busy"),
        ({"error": "busy", "message": ["try later", "or not"]}, "busy: try later"),
        ({"error": "busy", "message": []}, "busy"),
        ({"errors": ["busy", "slow"]}, "busy"),
        ({"error": {"message": ["busy"]}}, "busy"),
        ({"Message": "busy"}, "busy"),
        ({"errorMessage": "busy"}, "busy"),
        ({"error_code": 110, "error_msg": "busy"}, "busy"),
        ({"error_message": "busy"}, "busy"),
        ({"fault": {"faultstring": "busy", "detail": {"errorcode": "x"}}}, "busy"),
        ({"error": "x", "error_description": "unknown client", "message": "busy"}, "unknown client"),
        (" ", None),
        ({"error": 7}, None),
        ([["busy"]], "busy"),
        ([], None),
        (None, None),
        (7, None),
        (DEEP, None),
    ],
    ids=range(35),
)
def test_message_is_found_in_the_forms_of_providers(payload: Any, message: str | None) -> None:
    assert message_of(payload) == message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"error": "x"}, True),
        ({"error": {"code": 7}}, True),
        ({"error": {"message": "", "code": None}}, False),
        ({"error": ""}, False),
        ({"error": {}}, False),
        ({"error": False}, False),
        ({"error": None}, False),
        ({"jsonrpc": "2.0", "error": {"code": 7}}, False),
        ({"errors": ["x"]}, False),
        ("error", False),
        ([{"error": "x"}], False),
    ],
    ids=repr,
)
def test_error_object_has_an_error_that_is_not_empty(value: Any, expected: bool) -> None:
    assert is_error(value) is expected


def test_error_without_an_event_quotes_its_message() -> None:
    error = upstream_error({"error": " busy\n"}, None)
    assert (error.event, error.payload, str(error)) == (None, {"error": " busy\n"}, "the upstream sent an error: busy")


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        ('{"error": {"message": "too long"}}', ...),
        ('\ufeff\n{\n "error": "too long"\n}\n', ...),
        ('[{"error": {"message": "too long"}}]', ...),
        ('{"jsonrpc": "2.0", "id": null, "error": {"message": "too long"}}', ...),
        ('{"type": "error", "message": "too long"}', ...),
        ('{"object": "error", "message": "too long"}', ...),
        ('error: {"message": "too long"}\n\n', {"message": "too long"}),
        ('error:{"code": 500,\n"message": "too long"}', {"code": 500, "message": "too long"}),
        ('error: {"message": "too long"}\n\n{"more": 1}', {"message": "too long"}),
    ],
)
def test_error_object_as_a_body_is_an_upstream_error(body: str, payload: Any) -> None:
    error = unframed_body_error(body.encode())
    assert isinstance(error, UpstreamError)
    assert error.event is None
    assert error.payload == (json.loads(body.lstrip("\ufeff")) if payload is ... else payload)
    assert str(error) == "the upstream sent an error: too long"


@pytest.mark.parametrize(
    "body",
    [
        '{"n": 1, "text": "seen"}',
        '{"error": "", "text": "seen"}',
        '{"text": "seen"}\n{"error": "late"}\n',
        "<html><h1>seen</h1></html>",
        "error: seen",
        "error: seen\n" + "[" * 100_000,
        "seen",
        '["seen"]',
        '"seen"',
    ],
    ids=lambda body: body[:30],
)
def test_body_of_other_text_is_quoted_by_a_protocol_error(body: str) -> None:
    error = unframed_body_error(body.encode())
    assert type(error) is ProtocolError
    assert "no event stream" in str(error)
    assert "seen" in str(error)
    assert str(error).isprintable()


def test_quotation_of_a_body_is_bounded() -> None:
    assert len(str(unframed_body_error(b"\xff\x1b\n" * 20_000))) < 700
