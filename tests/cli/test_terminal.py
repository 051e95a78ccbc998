"""Output on a terminal: control characters are escaped, and a status line never overwrites text."""

from __future__ import annotations

import io
import json
import sys
import threading
from typing import Any

import pytest

from sseqbridge._cli.main import main
from sseqbridge._cli.output import StatusLine, item_printer, print_message
from sseqbridge._cli.terminal import TerminalOutput, escaped
from sseqbridge.testing import SSEServer, cut, hold, in_turn, respond, send
from tests.clock import FakeClock
from tests.support import in_thread, measured_environment, until

from .support import Capture, PseudoTerminal, Terminal, command

RAW = "\x1b]0;title\x07 \x9b31m \x7f tab\tend"
ESCAPED = r"\x1b]0;title\x07 \x9b31m \x7f tab" + "\tend"


def as_standard_streams(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Let a fake terminal be standard output and error. (Not in a fixture: pytest replaces both before the test.)"""
    fake = Terminal()
    fake.reconfigure = lambda **options: None  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stdout", fake)
    monkeypatch.setattr(sys, "stderr", fake)
    monkeypatch.setenv("TERM", "dumb")
    return fake


@pytest.mark.parametrize(
    ("options", "steps", "raw", "shown"),
    [
        ([], [send(RAW)], f"{RAW}\n", f"{ESCAPED}\n"),
        (["--json"], [send(json.dumps("\x9b\x7f"))], '"\x9b\x7f"\n', '"\\u009b\\u007f"\n'),
        (["--path", "n"], [send({"n": RAW})], f"{RAW}\n", f"{ESCAPED}\n"),
        (["--path", "n"], [send({"n": "a\r\nb"})], "a\r\nb\n", "a\\x0d\nb\n"),
        (
            ["--events"],
            [f": {RAW}\n\nid: {RAW}\nevent: {RAW}\ndata: {RAW}\n\n".encode()],
            f": {RAW}\n\nevent: {RAW}\nid: {RAW}\ndata: {RAW}\n\n",
            f": {ESCAPED}\n\nevent: {ESCAPED}\nid: {ESCAPED}\ndata: {ESCAPED}\n\n",
        ),
    ],
    ids=["text", "json", "path", "line breaks", "events"],
)
def test_control_characters_are_escaped_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, options: list[str], steps: list[Any], raw: str, shown: str
) -> None:
    standard_streams = as_standard_streams(monkeypatch)
    with SSEServer(steps) as server:
        assert main([server.url, *options]) == 0
        assert standard_streams.getvalue() == shown
        piped = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(piped, encoding="utf-8", newline=""))
        assert main([server.url, *options]) == 0
        assert piped.getvalue().decode() == raw


@pytest.mark.parametrize("content_type", ["text/plain", "text/html"])
def test_error_response_is_escaped_on_a_terminal(monkeypatch: pytest.MonkeyPatch, content_type: str) -> None:
    standard_streams = as_standard_streams(monkeypatch)
    response = respond(500, {"X-A": "a\x9bb"}, framing="length", content_type=content_type)
    with SSEServer([response, RAW.encode()]) as server:
        assert main([server.url, "--include"]) == 1
    shown = standard_streams.getvalue()
    assert r"\x1b]0;title\x07" in shown
    assert "\x1b" not in shown
    assert "\x9b" not in shown


def test_messages_are_escaped_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    standard_streams = as_standard_streams(monkeypatch)
    print_message(RAW)
    assert standard_streams.getvalue() == f"sseqbridge: {ESCAPED}\n"


def test_every_control_character_is_escaped() -> None:
    controls = [chr(code) for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\t\n"]
    assert [escaped(character) for character in controls] == [f"\\x{ord(character):02x}" for character in controls]
    for character in controls:
        assert json.loads(f'"{escaped(character, as_json=True)}"') == character
    for text in ("\t\n", "aü€", "\u202eabc", "👩‍👧 "):
        assert escaped(text) == text


# The place of the status line.


@pytest.mark.parametrize(
    ("texts", "column"),
    [
        (["abc"], 3),
        (["abc", "d"], 4),
        (["abc\n"], 0),
        (["abc", "\nab"], 2),
        (["a\tb"], 9),
        (["日本"], 4),
        (["e\u0301"], 1),
        (["a\x1bb"], 6),
        ([], 0),
    ],
)
def test_column_is_the_width_of_the_unfinished_line(texts: list[str], column: int) -> None:
    output = TerminalOutput(Terminal(), as_json=False)
    for text in texts:
        output.write(text)
    assert output.column == column


def test_finished_line_is_not_ended_again() -> None:
    terminal = Terminal()
    output = TerminalOutput(terminal, as_json=False)
    output.break_line()
    output.write("a")
    output.break_line()
    output.break_line()
    assert terminal.getvalue() == "a\n"


@pytest.mark.parametrize(("text", "is_full"), [("", False), ("x" * 39, False), ("x" * 40, True), ("日" * 40, True)])
def test_full_line_is_ended_before_the_status_line(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, text: str, is_full: bool
) -> None:
    """The terminal would do the same at the next character, and the cursor could not return to its place."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    output = TerminalOutput(terminal, as_json=False)
    line = StatusLine(terminal, output)
    item_printer(output, "json", ["n"]).add({"n": text})
    line.add(1)
    clock.advance(100)
    line.show("waiting for a long time")
    drawn = terminal.getvalue().removeprefix(text)
    # Not longer than the terminal is wide.
    shown = "waiting for a long time, 100 s, 1 events so far"[:39]
    if is_full or not text:
        assert drawn == "\n" * is_full + f"\r\x1b[K{shown}"
    else:
        assert drawn == f"\x1bD\x1b[A\x1b7\x1b[B\r\x1b[K{shown}\x1b8"


@pytest.mark.slow
def test_message_between_tokens_has_a_line_of_its_own(terminal: PseudoTerminal) -> None:
    theirs, seen = terminal
    go = threading.Event()
    first = [send({"n": "a"}, id="1", retry=0.01), hold(go), cut()]
    with SSEServer(in_turn(first, [send({"n": "b"}), send("[DONE]")])) as server:
        # Without a status line, which a busy machine shows.
        how: dict[str, Any] = {"stdout": theirs, "stderr": theirs, "env": {**measured_environment(), "TERM": "dumb"}}
        with command(server.url, "--path", "n", "--reconnect", **how) as process:
            until(lambda: "a" in seen())
            go.set()
            process.wait(60)
    assert "a\r\nsseqbridge: http://" in seen()
    assert seen().endswith("(attempt 1)\r\nb\r\n")


def test_closed_terminal_ends_the_status_line_alone(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    class Closed(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setenv("TERM", "xterm")
    line = StatusLine(Closed())
    assert line.is_shown
    clock.advance(100)
    line.show("waiting")
    assert not line.is_shown
    line.clear()


@pytest.mark.slow
def test_stall_shows_beside_output_into_a_pipe(terminal: PseudoTerminal) -> None:
    theirs, seen = terminal
    go = threading.Event()
    with SSEServer([send({"n": "a"}), hold(go), send({"n": "b"})]) as server:
        env = {**measured_environment(), "TERM": "xterm"}
        with command(server.url, "--path", "n", stderr=theirs, env=env) as process:
            until(lambda: "waiting, 1 s, 1 events so far" in seen())
            go.set()
            assert process.communicate(timeout=60)[0] == "ab\n"
    assert seen().endswith("\r\x1b[K")


def test_standard_error_without_a_file_shows_nothing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with SSEServer([respond(503, framing="length"), b"busy"]) as server:
        assert in_thread(lambda: main([server.url])).result(30) == 1
    assert capsys.readouterr().out == ""
