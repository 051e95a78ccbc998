"""`sseqbridge URL --jsonl`: prints JSON Lines."""

from __future__ import annotations

import pytest

from sseqbridge._cli.main import main
from sseqbridge.testing import SSEServer, cut, respond

from .support import Capture

LINES = respond(content_type="application/x-ndjson")
BODY = b'{"response":"Hel"}\r\n\n{"response":"lo"}\n'


@pytest.mark.parametrize(
    ("options", "out"),
    [
        ([], '{"response":"Hel"}\n{"response":"lo"}\n'),
        (["--json"], '{"response": "Hel"}\n{"response": "lo"}\n'),
        (["--events"], 'data: {"response":"Hel"}\n\ndata: {"response":"lo"}\n\n'),
        (["--path", "response"], "Hello\n"),
        (["--max-events", "1"], '{"response":"Hel"}\n'),
    ],
    ids=" ".join,
)
def test_lines_are_printed(capsys: Capture, options: list[str], out: str) -> None:
    with SSEServer([LINES, BODY]) as server:
        assert main([server.url, "--jsonl", *options]) == 0
    assert capsys.readouterr().out.replace('": "', '":"') == out.replace('": "', '":"')


def test_torn_line_is_an_error(capsys: Capture) -> None:
    with SSEServer([LINES, BODY + b'{"resp', cut()]) as server:
        assert main([server.url, "--jsonl"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 2
    assert '"{"resp"' in captured.err


def test_other_format_names_the_option(capsys: Capture) -> None:
    with SSEServer([LINES, BODY]) as server:
        assert main([server.url]) == 1
        assert "--jsonl" in capsys.readouterr().err
        server.play([respond(), b"data: 1\n\n"])
        assert main([server.url, "--jsonl"]) == 1
        assert "leave out --jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--reconnect"], ["--last-event-id", "7"]], ids=" ".join)
def test_options_without_meaning_are_refused(capsys: Capture, option: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["http://127.0.0.1:9", "--jsonl", *option])
    assert left.value.code == 2
    assert "no IDs" in capsys.readouterr().err
