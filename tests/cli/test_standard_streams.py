"""Standard streams that are closed, full, or have no reader."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sseqbridge.testing import SSEServer, expect, respond, send

from .support import command

pytestmark = pytest.mark.slow

STEPS = [send("a"), send("b")]


def test_closed_standard_input_is_no_request_body() -> None:
    with command("http://localhost", "--data", "-", shell='exec "$@" <&-') as process:
        assert process.communicate(timeout=60) == (
            "",
            "sseqbridge: standard input must be open for --data -, got a closed one. Pass --data @FILE.\n",
        )
        assert process.returncode == 2


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_streams_that_are_not_needed_change_nothing(closed: str) -> None:
    with (
        SSEServer([expect("POST", json={}), *STEPS]) as server,
        command(server.url, "-d", "{}", "--stats", shell=f'exec "$@" {closed}') as process,
    ):
        assert process.communicate(timeout=60)[0] == "a\nb\n"
        assert process.returncode == 0


def test_closed_standard_error_puts_no_message_into_the_output() -> None:
    with (
        SSEServer([respond(503, framing="length"), b"busy"]) as server,
        command(server.url, shell='exec "$@" 2>&-') as process,
    ):
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 1


def test_closed_standard_output_is_refused() -> None:
    with command("http://localhost", shell='exec "$@" >&-') as process:
        assert "standard output must be open" in process.communicate(timeout=60)[1]
        assert process.returncode == 2


def test_recording_needs_no_standard_streams(tmp_path: Path) -> None:
    """No file or connection gets their descriptors."""
    file = tmp_path / "file"
    with (
        SSEServer(STEPS) as server,
        command("record", server.url, str(file), shell='exec "$@" <&- >&- 2>&-') as process,
    ):
        assert process.wait(60) == 0
    assert [line.split('"data": ')[1:] for line in file.read_text().splitlines()] == [['"a"}'], ['"b"}'], []]


@pytest.mark.parametrize(
    ("redirected", "status", "messages"),
    [
        ("> /dev/full", 1, "sseqbridge: [Errno 28] No space left on device\n"),
        ("2> /dev/full", 0, ""),
        ("> /dev/full 2> /dev/full", 1, ""),
    ],
)
def test_full_disk_under_a_standard_stream(redirected: str, status: int, messages: str) -> None:
    """The interpreter, which flushes again at its end, adds neither a message nor a status."""
    with SSEServer(STEPS) as server, command(server.url, shell=f'exec "$@" {redirected}') as process:
        out = "a\nb\n" if status == 0 else ""
        assert process.communicate(timeout=60) == (out, messages)
        assert process.returncode == status


def test_reader_of_messages_may_leave() -> None:
    with SSEServer([respond(503, framing="length"), b"busy" * 100_000]) as server, command(server.url) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(60) == 1


@pytest.mark.parametrize("closed", ["2>&-", "2> /dev/full", "<&- 2>&-"])
@pytest.mark.parametrize("arguments", [["--unknown"], ["record"], ["serve", "--port", "x"]], ids=" ".join)
def test_wrong_arguments_put_nothing_into_the_output(closed: str, arguments: list[str]) -> None:
    with command(*arguments, shell=f'exec "$@" {closed}') as process:
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 2


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_reader_of_the_help_may_leave(argument: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        with command(argument, stdout=write) as process:
            assert process.communicate(timeout=60)[1] == ""
            assert process.returncode == 0
    finally:
        os.close(write)
