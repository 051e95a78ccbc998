"""Options of the request, and how its response is shown."""

from __future__ import annotations

import ssl

import httpx
import pytest

from sseqbridge import StatusError
from sseqbridge._cli.errors import body_text
from sseqbridge._cli.main import main
from sseqbridge.testing import SSEServer, comment, expect, respond, send

from .support import Capture


def test_address_without_a_scheme_is_http(capsys: Capture) -> None:
    with SSEServer([expect("GET", "/path?u=http://x"), send("a")]) as server:
        address = server.url.removeprefix("http://")
        for form in (address, f"//{address}", f"localhost:{address.rpartition(':')[2]}"):
            assert main([f"{form}/path?u=http://x"]) == 0
    assert capsys.readouterr().out == "a\n" * 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("localhost:1", "http://localhost:1/"),
        ("[::1]:1/x", "http://[::1]:1/x"),
        ("HTTP://127.0.0.1:1", "http://127.0.0.1:1/"),
        ("https://127.0.0.1:1", "https://127.0.0.1:1/"),
    ],
)
def test_address_that_refuses_connections_is_named(capsys: Capture, text: str, shown: str) -> None:
    assert main([text]) == 1
    assert f"no connection to {shown}" in capsys.readouterr().err


def test_any_certificate_is_accepted_with_insecure(capsys: Capture, server_tls: ssl.SSLContext) -> None:
    with SSEServer([expect(headers={"x-a": "1"}), send("a")], ssl_context=server_tls) as server:
        assert main([server.url, "-H", "X-A: 1"]) == 1
        assert "certificate" in capsys.readouterr().err
        for option in ("-k", "--insecure"):
            assert main([server.url, "-H", "X-A: 1", option]) == 0
    assert capsys.readouterr() == ("a\n" * 2, "")


def test_last_event_id_resumes_a_stream(capsys: Capture) -> None:
    with SSEServer([expect(last_event_id="7"), send("a")]) as server:
        assert main([server.url, "--last-event-id", "7"]) == 0
        assert main([server.url, "--last-event-id", "a\nb"]) == 2
    assert capsys.readouterr().out == "a\n"


@pytest.mark.parametrize("option", ["-i", "--include"])
def test_include_prints_the_head_first(capsys: Capture, option: str) -> None:
    with SSEServer([respond(headers={"X-A": "ü"}), comment("x"), send("a")]) as server:
        assert main([server.url, option]) == 0
    head, items = capsys.readouterr().out.split("\n\n", 1)
    status, *headers = head.split("\n")
    assert (status, items) == ("HTTP/1.1 200 OK", "a\n")
    assert "X-A: ü" in headers
    assert any(line.lower().startswith("content-type: text/event-stream") for line in headers)


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (respond(503, framing="length", content_type="text/plain"), "503 Service Unavailable"),
        (respond(200, framing="length", content_type="text/plain"), "200 OK"),
        (respond(204), "204 No Content"),
    ],
)
def test_include_prints_the_head_of_a_refusal(capsys: Capture, response: object, status: str) -> None:
    with SSEServer([response, *([] if "204" in status else [b"busy"])]) as server:  # type: ignore[list-item]
        assert main([server.url, "--include"]) == (0 if "204" in status else 1)
    out, err = capsys.readouterr()
    assert out.startswith(f"HTTP/1.1 {status}\n")
    assert out.endswith("\n\n")
    assert ("busy" in err) == ("204" not in status)


# A path without a value.


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("text", "the first event has the keys choices, usage"),
        ("choices.0.text", "choices.0 of the first event has the keys delta"),
        ("choices.1", "choices of the first event is a list of 1"),
        ("choices.x", "choices of the first event is a list of 1"),
        ("choices.--1", "choices of the first event is a list of 1"),
        (f"choices.{'9' * 5000}", "choices of the first event is a list of 1"),
        ("choices.0.delta.text", "choices.0.delta of the first event has no keys"),
        ("usage.total", "usage of the first event is no object and no list"),
    ],
)
def test_path_without_a_value_fails(capsys: Capture, path: str, place: str) -> None:
    with SSEServer([send({"choices": [{"delta": {}}], "usage": None}), send({}), send("[DONE]")]) as server:
        assert main([server.url, "--path", path]) == 1
        assert main([server.url, "--path", path, "--max-events", "1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"sseqbridge: no event has a value at --path {path}: {place}\n" * 2


def test_path_with_many_keys_names_the_first(capsys: Capture) -> None:
    with SSEServer([send({f"{'k' * 100}{n}": 1 for n in range(100)})]) as server:
        assert main([server.url, "--path", "x"]) == 1
    err = capsys.readouterr().err
    assert err.endswith(", ...\n")
    assert len(err) < 600


@pytest.mark.parametrize("value", [None, "", 0, [], False])
def test_path_with_a_value_in_one_event_succeeds(capsys: Capture, value: object) -> None:
    with SSEServer([send({}), send({"n": value}), send({})]) as server:
        assert main([server.url, "--path", "n"]) == 0
    assert capsys.readouterr().err == ""


def test_path_in_an_empty_stream_succeeds() -> None:
    with SSEServer([respond(204)]) as server:
        assert main([server.url, "--path", "n"]) == 0


# Error pages.

PAGE = """<!DOCTYPE html>
<html><head><title>502 Bad Gateway</title><style>body { color: red }</style><script>alert("<p>no</p>")</script></head>
<body><center><h1>502 Bad&nbsp;Gateway</h1></center><p>The server &amp; the proxy</p><hr>nginx</body></html>
"""


def shown(body: str, content_type: str = "text/html; charset=utf-8") -> str:
    return body_text(StatusError("", 502, httpx.Headers({"content-type": content_type}), body.encode()))


def test_html_page_is_shortened_to_its_text(capsys: Capture) -> None:
    steps = [respond(502, framing="length", content_type="text/html"), PAGE.encode()]
    with SSEServer(steps) as server:
        assert main([server.url]) == 1
    assert capsys.readouterr().err == (
        f"502 Bad Gateway The server & the proxy nginx [from an HTML page of {len(PAGE)} bytes]\n"
        "sseqbridge: the upstream answered 502 Bad Gateway\n"
    )


def test_html_page_instead_of_events_is_shortened(capsys: Capture) -> None:
    with SSEServer([respond(content_type="text/html"), PAGE.encode()]) as server:
        assert main([server.url]) == 1
    err = capsys.readouterr().err
    assert "<" not in err
    assert "--any-content-type" in err


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<title>Log in</title><p>Your name?</p>", "Log in: Your name?"),
        ("<title>Log in</title>", "Log in"),
        ("<p>Hello", "Hello"),
        ("Hello", "Hello"),
        ("<script>x", ""),
        ("</script><p>Hello", "Hello"),
        (f"<p>{'word ' * 1000}", f"{'word ' * 60}..."),
    ],
)
def test_text_of_html_pages(page: str, text: str) -> None:
    assert shown(page) == f"{text} [from an HTML page of {len(page):,} bytes]".lstrip()


def test_empty_html_page_shows_nothing() -> None:
    assert shown("") == ""


@pytest.mark.parametrize("start", ["<!doctype html>", "<html lang=en>", "\n <!-- x --> <HTML>", "<?xml ?>\n<html>"])
def test_html_without_its_content_type_is_recognized(start: str) -> None:
    assert shown(f"{start}<p>Hello", "text/plain").startswith("Hello [from")


@pytest.mark.parametrize("body", ['{"error": "<html>"}', "busy", "<htmlx>", "<error/>", "a" * 10_000])
def test_other_bodies_are_shown_whole(body: str) -> None:
    assert shown(body, "text/plain") == body


@pytest.mark.slow
def test_large_html_page_is_read_in_linear_time() -> None:
    for page in ("<" * 1_000_000, "<!" * 500_000, "&" * 1_000_000, "<a " * 300_000):
        assert len(shown(page)) < 400


# Help.


@pytest.mark.parametrize("arguments", [["--help"], ["record", "--help"], ["serve", "--help"]])
def test_help_shows_usage_example_and_status(capsys: Capture, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: sseqbridge ")
    assert "Exit status: 0;" in out
    assert all(len(line) <= 120 for line in out.splitlines())


def test_dialect_decides_which_event_ends_the_stream(capsys: Capture) -> None:
    steps = [send("a"), send("{}", event="message_stop"), send("b"), send("[DONE]"), send("c")]
    with SSEServer(steps) as server:
        for options, text in (
            ([], "a\n{}\nb\n"),
            (["--dialect", "openai"], "a\n{}\nb\n"),
            (["--dialect", "anthropic"], "a\n{}\n"),
            (["--dialect", "events"], "a\n{}\nb\n[DONE]\nc\n"),
        ):
            assert main([server.url, *options]) == 0
            assert capsys.readouterr() == (text, "")


def test_unknown_dialect_is_refused(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["http://h", "--dialect", "other"])
    assert caught.value.code == 2
    assert "argument --dialect: invalid choice: 'other'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["http://h", "--dialect", "events", "--jsonl"])
    assert "--jsonl: each line of JSON Lines is an item" in capsys.readouterr().err
