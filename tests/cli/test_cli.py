"""The command line: in this process for its output, in its own process for signals, pipes and terminals."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sseqbridge import request_sse
from sseqbridge.__main__ import run
from sseqbridge._cli import main as main_module
from sseqbridge._cli import print_command, serve_command
from sseqbridge._cli.main import main
from sseqbridge._cli.output import StatusLine, value_at
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    chat_completions,
    comment,
    cut,
    expect,
    hold,
    in_turn,
    recording,
    respond,
    send,
    silence,
)
from sseqbridge.testing._steps import Wait
from tests.clock import FakeClock
from tests.support import ROOT, in_thread, measured_environment, until, until_blocked

from .support import Capture, PseudoTerminal, Terminal, command

pytestmark = pytest.mark.slow

DONE = send("[DONE]")
CHAT = {"messages": [{"role": "user", "content": "Good day to you."}], "stream": True}

# The output.


def test_text_prints_the_data_of_each_event(capsys: Capture) -> None:
    with SSEServer([send("a"), comment("not this"), send("b\nc", event="x"), DONE]) as server:
        assert main([server.url]) == 0
    assert capsys.readouterr() == ("a\nb\nc\n", "")


def test_json_prints_one_line_per_event(capsys: Capture) -> None:
    with SSEServer([b'data: {"n":\ndata: 1}\n\n', send("ü"), send(json.dumps("ü")), DONE]) as server:
        assert main([server.url, "--json", "--max-events", "1"]) == 0
        assert capsys.readouterr().out == '{"n": 1}\n'
        assert main([server.url, "--json"]) == 1
        out, err = capsys.readouterr()
        assert out == '{"n": 1}\n'
        assert "is not JSON" in err
        assert "--text prints it unchanged" in err


def test_events_are_printed_in_the_event_stream_format(capsys: Capture) -> None:
    with SSEServer([comment("hi"), send("a\nb", event="x", id="1", retry=1.5), DONE]) as server:
        assert main([server.url, "--events"]) == 0
    assert capsys.readouterr().out == ": hi\n\nevent: x\nid: 1\nretry: 1500\ndata: a\ndata: b\n\n"


def test_path_joins_tokens(capsys: Capture) -> None:
    with SSEServer(chat_completions()) as server:
        assert main([server.url, "-d", json.dumps(CHAT), "--path", "choices.0.delta.content"]) == 0
    assert capsys.readouterr() == ("Good day to you.\n", "")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a.0.b", 1),
        ("a.-1.b", 2),
        ("a.2.b", None),
        ("a.x", None),
        ("b", None),
        ("a.0.b.c", None),
        ("c", False),
    ],
)
def test_path_picks_a_value(path: str, value: Any) -> None:
    assert value_at({"a": [{"b": 1}, {"b": 2}], "c": False}, path.split(".")) is value


def test_path_prints_json_of_other_values(capsys: Capture) -> None:
    with SSEServer([send({"n": [1, "ü"]}), send({"n": ""}), send({}), send({"n": "end\n"}), DONE]) as server:
        assert main([server.url, "--path", "n"]) == 0
    assert capsys.readouterr().out == '[1, "ü"]end\n'


def test_text_that_cannot_be_encoded_is_escaped(capsys: Capture) -> None:
    with SSEServer([b'data: {"n": "\\ud800"}\n\n', DONE]) as server:
        assert main([server.url, "--path", "n"]) == 0
    assert capsys.readouterr().out == "\\ud800\n"


def test_stats_are_printed_at_the_end(capsys: Capture) -> None:
    with SSEServer([send(1), send(2), DONE]) as server:
        assert main([server.url, "--stats"]) == 0
        err = capsys.readouterr().err
    assert re.fullmatch(
        r"sseqbridge: first event after \d+\.\d{3} s, 2 events in \d+\.\d{3} s \([\d,.]+ a second\), \d\d bytes\n", err
    )
    with SSEServer(in_turn([b"retry: 10\n\n", cut()], [DONE])) as server:
        assert main([server.url, "--stats", "--reconnect"]) == 0
        err = capsys.readouterr().err
    assert "reconnecting in" in err
    assert "no event" in err
    assert "1 reconnections" in err


# The request.


def test_options_determine_the_request(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = tmp_path / "body.json"
    body.write_text('{"a":  1}')
    with SSEServer([expect("PUT", "/x?y=1", headers={"X-A": "1", "x-b": "2: 3"}), send(1), DONE]) as server:
        assert main([f"{server.url}/x?y=1", "-X", "put", "-H", "X-A: 1", "-H", "X-B:2: 3"]) == 0
    with SSEServer([expect("POST", headers={"content-type": "application/json"}, json={"a": 1}), DONE]) as server:
        assert main([server.url, "-d", f"@{body}"]) == 0
        # The bytes are unchanged.
        assert server.requests[0].body == b'{"a":  1}'
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}')))
        assert main([server.url, "-d", "-"]) == 0
    with SSEServer([expect(headers={"content-type": "application/x"}), DONE]) as server:
        assert main([server.url, "-d", "[]", "-H", "content-type: application/x"]) == 0
    assert capsys.readouterr().err == ""


def test_max_events_aborts_the_upstream(capsys: Capture) -> None:
    with SSEServer([send(1), send(2), send(3), silence()]) as server:
        assert main([server.url, "--max-events", "2"]) == 0
        server.requests[0].wait_aborted()
    assert capsys.readouterr().out == "1\n2\n"


@pytest.mark.parametrize(("timeout", "message"), [("idle=60", "no event"), ("60", "not a byte"), ("read=60", "not a")])
def test_timeout_ends_the_command(clock: FakeClock, capsys: Capture, timeout: str, message: str) -> None:
    out = ""

    def is_printed() -> bool:
        nonlocal out
        out += capsys.readouterr().out
        return out == "1\n"

    with SSEServer([send(1), silence()]) as server:
        running = in_thread(lambda: main([server.url, "--timeout", timeout]))
        until(is_printed)
        clock.advance_until(running.done, step=10)
        assert running.result() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "--timeout sets this limit" in err


def test_reconnect_retries_the_first_request(capsys: Capture) -> None:
    with SSEServer(in_turn([respond(503, {"Retry-After": "0"})], [send(1), DONE])) as server:
        assert main([server.url, "--reconnect"]) == 0
    out, err = capsys.readouterr()
    assert out == "1\n"
    assert "503" in err


def test_reconnect_resumes_the_stream(capsys: Capture) -> None:
    first = [expect(last_event_id=""), send("a", id="7", retry=0.01), cut(within=send("b"))]
    with SSEServer(in_turn(first, [expect(last_event_id="7"), send("b"), DONE])) as server:
        assert main([server.url, "--reconnect"]) == 0
    out, err = capsys.readouterr()
    assert out == "a\nb\n"
    assert re.fullmatch(r"sseqbridge: http://.*; reconnecting in 0\.\d s \(attempt 1\)\n", err)


# Errors.


def test_refusal_is_printed_to_standard_error(capsys: Capture) -> None:
    with SSEServer([respond(401, framing="length", content_type="application/json"), b'{"error": "no key"}']) as server:
        assert main([f"{server.url}?key=secret"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == '{"error": "no key"}\nsseqbridge: the upstream answered 401 Unauthorized\n'


def test_refusal_without_a_body(capsys: Capture) -> None:
    with SSEServer([respond(500, framing="length")]) as server:
        assert main([server.url]) == 1
    assert capsys.readouterr().err == "sseqbridge: the upstream answered 500 Internal Server Error\n"


def test_other_content_type_is_refused(capsys: Capture) -> None:
    with SSEServer([respond(content_type="text/plain"), b"data: 1\n\n"]) as server:
        assert main([server.url]) == 1
        assert "--any-content-type reads it" in capsys.readouterr().err
        assert main([server.url, "--any-content-type"]) == 0
        assert capsys.readouterr().out == "1\n"


def test_status_204_prints_nothing(capsys: Capture) -> None:
    with SSEServer([respond(204)]) as server:
        assert main([server.url]) == 0
    assert capsys.readouterr() == ("", "")


def test_broken_stream_exits_with_1(capsys: Capture) -> None:
    with SSEServer([send(1), cut()]) as server:
        assert main([server.url]) == 1
    out, err = capsys.readouterr()
    assert out == "1\n"
    assert "closed in mid-stream" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "URL"),
        (["ftp://localhost"], "http://"),
        (["https:/localhost"], "http://"),
        ([""], "http://"),
        (["http://localhost", "-H", "Bearer sk-secret"], "a header must have the form 'Name: value'"),
        (["http://localhost", "-H", "a b: sk-secret"], "a name must be"),
        (["http://localhost", "-d", "{sk-secret"], "must be JSON"),
        (["http://localhost", "-d", "@/nowhere"], "No such file"),
        (["http://localhost", "--timeout", "soon"], "number of seconds"),
        (["http://localhost", "--timeout", "patience=1"], "keys of `timeout`"),
        (["http://localhost", "--max-events", "0"], "at least 1"),
        (["http://localhost", "--path", "a..b"], "dots between"),
        (["http://localhost", "--path", "a", "--text"], "--json"),
        (["http://localhost", "--json", "--text"], "not allowed with"),
        (["http://localhost", "--no-such-option"], "unrecognized"),
        (["record", "http://localhost"], "FILE"),
        (["record", "http://localhost", "/nowhere/file"], "No such file"),
        (["serve"], "FILE"),
        (["serve", "/nowhere"], "No such file"),
        (["serve", "setup.cfg"], "line 1"),
        (["serve", "setup.cfg", "--speed", "0"], "above 0"),
        (["serve", "setup.cfg", "--port", "99999"], "must be a port"),
        (["serve", "setup.cfg", "--port", "-1"], "--port"),
    ],
)
def test_wrong_arguments_exit_with_2(capsys: Capture, arguments: list[str], message: str) -> None:
    try:
        status = main(arguments)
    except SystemExit as left:
        assert left.code == 2
        status = 2
    assert status == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "secret" not in err


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert re.fullmatch(r"sseqbridge \d+\.\d+\.\d+\n", capsys.readouterr().out)


# Signals, pipes and terminals.


def test_interrupt_aborts_the_upstream() -> None:
    with SSEServer([send(1), silence()]) as server, command(server.url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGINT)
        server.requests[0].wait_aborted(60)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 130


def test_interrupt_before_the_response_aborts_the_request() -> None:
    with SSEServer([silence()]) as server, command(server.url) as process:
        server.wait_for_request(timeout=60)
        process.send_signal(signal.SIGINT)
        server.requests[0].wait_aborted(60)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 130


@pytest.mark.parametrize(
    "steps",
    [[silence()], [send(1), silence()], [send(n) for n in range(50_000)]],
    ids=["before the response", "in silence", "in mid-stream"],
)
def test_closed_pipe_ends_the_command(steps: list[Step]) -> None:
    with SSEServer(steps) as server, command(server.url) as process:
        server.wait_for_request(timeout=60)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0
        assert server.requests[0].finished.wait(30)


def test_closed_pipe_ends_the_command_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in ([send("x"), silence()], [silence()]):
        reader, writer = os.pipe()
        os.close(reader)
        with SSEServer(steps) as server, os.fdopen(writer, "w") as output, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            assert main([server.url]) == 0
            # Without the flag, writing detects it.
            patch.setattr(print_command, "ClosedReader", lambda output: None)
            if steps[0] is not steps[-1]:
                assert main([server.url]) == 0


def test_events_are_printed_at_once() -> None:
    with SSEServer([send(1), silence()]) as server, command(server.url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"


@pytest.mark.parametrize("steps", [[], [respond(), comment()], [send("a")]], ids=["response", "first event", "another"])
def test_terminal_shows_the_current_wait(terminal: PseudoTerminal, steps: list[Step]) -> None:
    theirs, seen = terminal
    go = threading.Event()
    message = {0: "waiting for the response", 2: "waiting for the first event", 1: "waiting"}[len(steps)]
    with SSEServer([*steps, hold(go), send("b"), DONE]) as server:
        with command(server.url, stderr=theirs, env={**measured_environment(), "TERM": "xterm"}) as process:
            until(lambda: re.search(rf"\r\x1b\[K{message}, \d+ s", seen()))
            # After one event, the line shows the count.
            until(lambda: len(steps) != 1 or "1 events so far" in seen())
            go.set()
            out, _ = process.communicate(timeout=60)
        assert out == ("a\nb\n" if len(steps) == 1 else "b\n")
        # The line is erased at the end.
        assert seen().endswith("\r\x1b[K")
        assert ("1 events so far" in seen()) == (len(steps) == 1)


def test_terminal_shows_a_stall_below_the_unfinished_line(terminal: PseudoTerminal) -> None:
    theirs, seen = terminal
    first, second = threading.Event(), threading.Event()
    with SSEServer([hold(first), send({"n": "a"}), hold(second), send({"n": "b"}), DONE]) as server:
        how: dict[str, Any] = {"stdout": theirs, "stderr": theirs, "env": {**measured_environment(), "TERM": "xterm"}}
        with command(server.url, "--path", "n", **how) as process:
            until(lambda: "waiting for the response" in seen())
            first.set()
            until(lambda: "waiting, 1 s, 1 events so far" in seen())
            second.set()
            process.wait(60)
    # The cursor goes down, and back to its place after "a".
    text = seen()[seen().index("\r\x1b[Ka") :]
    below = r"\x1b7\x1b\[B\r\x1b\[K%s\x1b8"
    shown = r"\x1bD\x1b\[A" + below % r"waiting, \d+ s, 1 events so far"
    assert re.fullmatch(rf"\r\x1b\[Ka({shown})+{below % ''}b\r\n", text)


def test_status_line_shows_the_current_wait_in_process(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    response, first, second = (threading.Event() for _ in range(3))

    def is_shown(line: str) -> bool:
        return re.search(line, terminal.getvalue()) is not None

    with SSEServer([hold(response), respond(), comment(), hold(first), send(1), hold(second), send(2), DONE]) as server:
        running = in_thread(lambda: main([server.url]))
        clock.advance_until(lambda: is_shown(r"waiting for the response, \d+ s"), step=0.1)
        response.set()
        clock.advance_until(lambda: is_shown(r"waiting for the first event, \d+ s"), step=0.1)
        first.set()
        clock.advance_until(lambda: is_shown(r"waiting, \d+ s, 1 events so far"), step=0.1)
        second.set()
        assert running.result(30) == 0
    assert capsys.readouterr().out == "1\n2\n"


def test_dumb_terminal_has_no_status_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert not StatusLine(Terminal()).is_shown


# Recordings.


def test_record_and_play(clock: FakeClock, capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "stream.jsonl"
    go = threading.Event()
    steps = [comment("hi"), send("ü", event="x", id="1", retry=0.5), hold(go), send({"n": 2}), DONE]
    with SSEServer([expect(headers={"authorization": "sk-secret"}), *steps]) as server:
        arguments = [f"{server.url}?key=secret", str(file), "-H", "Authorization: sk-secret", "-d", '"secret"']
        go.set()
        assert main(["record", *arguments]) == 0
        assert capsys.readouterr() == ("", f"sseqbridge: 3 events in {file}\n")
        # Without --overwrite the file is not replaced.
        assert main(["record", *arguments]) == 2
        assert "--overwrite" in capsys.readouterr().err
        go.clear()
        recorded = in_thread(lambda: main(["record", *arguments, "--overwrite"]))
        until(lambda: any("retry" in part.read_text("utf-8") for part in tmp_path.glob(".stream.jsonl.*.part")))
        clock.advance(300)
        go.set()
        assert recorded.result(30) == 0
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    times = [line.pop("time") for line in lines]
    assert lines == [
        {"comment": "hi"},
        {"event": "x", "data": "ü", "id": "1", "retry": 0.5},
        {"data": '{"n": 2}'},
        {"data": "[DONE]"},
        {"end": "eof"},
    ]
    assert times == sorted(times)
    assert times[2] - times[1] >= 300
    assert "secret" not in file.read_text("utf-8")
    with SSEServer(recording(file)) as server:
        began = clock.monotonic()
        stream = request_sse(server.url, decode="text", timeout=None).events
        assert clock.advance_until_done(stream.collect, step=10) == ["ü", '{"n": 2}']
        assert clock.monotonic() - began >= 300
        stream = request_sse(server.url, last_event_id="1", decode="text", timeout=None).events
        assert clock.advance_until_done(stream.collect, step=10) == ['{"n": 2}']


def test_recording_of_a_broken_stream_ends_with_cut(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "stream.jsonl"
    with SSEServer([send(1), cut()]) as server:
        assert main(["record", server.url, str(file)]) == 1
    assert json.loads(file.read_text("utf-8").splitlines()[-1])["end"] == "cut"
    with SSEServer(recording(file)) as server:
        assert main([server.url]) == 1
    assert capsys.readouterr().out == "1\n"


def test_max_events_limits_the_recording(tmp_path: Path) -> None:
    file = tmp_path / "stream.jsonl"
    with SSEServer([send(1), send(2), silence()]) as server:
        assert main(["record", server.url, str(file), "--max-events", "1"]) == 0
    with SSEServer(recording(file, speed=float("inf"))) as server:
        assert request_sse(server.url).events.collect() == [1]


def test_existing_file_stays_until_something_was_recorded(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "stream.jsonl"
    file.write_text("precious")
    with SSEServer([respond(503, framing="length")]) as server:
        assert main(["record", server.url, str(file), "--overwrite"]) == 1
        assert main(["record", server.url, str(file), "--overwrite", "--timeout", "-1"]) == 2
    assert file.read_text() == "precious"
    with SSEServer([send(1)]) as server:
        assert main(["record", server.url, str(file), "--overwrite"]) == 0
    assert '"data": "1"' in file.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["stream.jsonl"]


def test_recording_into_a_pipe(capsys: Capture, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = in_thread(pipe.read_text)
    with SSEServer([send(1)]) as server:
        assert main(["record", server.url, str(pipe), "--overwrite"]) == 0
    assert '"data": "1"' in reading.result(30)
    assert pipe.is_fifo()


def test_ids_are_recorded_where_they_change(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "stream.jsonl"
    steps = [send("a", id="1"), send("b"), b"id\ndata: c\n\n", send("d"), send("e", id="2"), DONE]
    with SSEServer(steps) as server:
        assert main(["record", server.url, str(file)]) == 0
        assert main([server.url, "--events"]) == 0
    printed = capsys.readouterr().out
    assert printed == "id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\ndata: d\n\nid: 2\ndata: e\n\n"
    with SSEServer(recording(file, speed=float("inf"))) as server:
        events = request_sse(server.url, decode="event").events.collect()
        assert [event.id for event in events] == ["1", "1", "", "", "2"]


def test_timing_does_not_drift(clock: FakeClock, tmp_path: Path) -> None:
    file = tmp_path / "stream.jsonl"
    file.write_text("".join(f'{{"time": {n}, "data": "{n}"}}\n' for n in range(1000)))
    request = ReceivedRequest("GET", "/", [], b"", 0)
    began = clock.monotonic()
    for step in recording(file)(request):
        # Each step takes a quarter of a second beyond its wait; accumulated it would be 1500 s.
        clock.advance((step.seconds if isinstance(step, Wait) else 0.0) + 0.25)
    assert 999 <= clock.monotonic() - began < 1100


def test_clock_starts_when_the_request_is_sent(
    clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            clock.advance(1000)
            return super().read(size)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Slow(b"{}")))
    file = tmp_path / "stream.jsonl"
    with SSEServer([send(1)]) as server:
        assert main(["record", server.url, str(file), "-d", "-"]) == 0
    assert json.loads(file.read_text().splitlines()[0])["time"] < 500


def test_comments_are_not_counted_as_events(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "stream.jsonl"
    with SSEServer([b":a\n\n:b\n\ndata: 1\n\n:c\n\ndata: 2\n\ndata: 3\n\n", silence()]) as server:
        assert main(["record", server.url, str(file), "--max-events", "2"]) == 0
        assert "2 events" in capsys.readouterr().err
        assert main([server.url, "--events", "--max-events", "1", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out == ": a\n\n: b\n\ndata: 1\n\n"
    assert " 1 events in " in err
    assert [line.get("data") for line in map(json.loads, file.read_text().splitlines())] == [None, None, "1", None, "2"]


def test_refusal_is_not_recorded(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "stream.jsonl"
    with SSEServer([respond(503, framing="length", content_type="text/plain"), b"busy"]) as server:
        assert main(["record", server.url, str(file)]) == 1
    assert "busy" in capsys.readouterr().err
    assert not file.exists()


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    file = tmp_path / "stream.jsonl"
    file.write_text(
        '{"time": 0, "data": "a", "id": "1"}\n\n{"time": 30, "data": "b"}\n{"time": 30, "data": "[DONE]"}\n'
    )
    return file


def test_serve_continues_with_standard_error_closed(recorded: Path) -> None:
    with command("serve", str(recorded), "--port", "0", "--speed", "1000", "--host", "::1") as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[1]
        assert url.startswith("http://[::1]:")
        process.stderr.close()
        for _ in range(2):
            assert request_sse(url, decode="text").events.collect() == ["a", "b"]


def test_closed_standard_output_exits_with_2(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["http://localhost"]) == 2


def test_interrupt_during_import_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "main", interrupted)
    assert run() == 130


def test_serve_plays_until_interrupted(recorded: Path) -> None:
    with command("serve", str(recorded), "--port", "0", "--speed", "100", "--cors") as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[1]
        response = request_sse(f"{url}/any?thing", data={"and": "more"}, decode="text", headers={"Origin": "http://a"})
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.events.collect() == ["a", "b"]
        assert process.stderr.readline() == "sseqbridge: POST /any\n"
        status, headers, _ = request_sse(url, method="OPTIONS")
        assert (status, headers["access-control-allow-methods"]) == (204, "*")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


@pytest.mark.parametrize(
    ("method", "options", "response"),
    [
        ("GET", [], (200, ["a", "b"], None)),
        ("GET", ["--cors"], (200, ["a", "b"], "*")),
        ("OPTIONS", ["--cors"], (204, [], "*")),
    ],
)
def test_serve_plays_in_process(
    recorded: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, method: str, options: list[str], response: Any
) -> None:
    got: list[Any] = []

    def ask() -> None:
        url = capsys.readouterr().err.split()[1]
        status, headers, events = request_sse(url, decode="text", method=method)
        got.append((status, events.collect(), headers.get("access-control-allow-origin")))

    monkeypatch.setattr(serve_command, "wait_for_interrupt", ask)
    assert main(["serve", str(recorded), "--port", "0", "--speed", "1000", *options]) == 0
    assert got == [response]


def test_serve_is_interrupted_in_process(recorded: Path) -> None:
    main_thread = threading.get_ident()

    def interrupt() -> None:
        until_blocked(main_thread)
        signal.pthread_kill(main_thread, signal.SIGINT)

    interrupting = in_thread(interrupt)
    assert main(["serve", str(recorded), "--port", "0"]) == 130
    interrupting.result(30)


def test_port_in_use_exits_with_1(recorded: Path, capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert main(["serve", str(recorded), "--port", str(listener.getsockname()[1])]) == 1
    assert "in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "object"),
        ("{", "line 1"),
        ('{"data": "x"}', "time"),
        ('{"time": -1, "data": "x"}', "at least 0"),
        ('{"time": true, "data": "x"}', "at least 0"),
        ('{"time": 1, "data": 1}', "text"),
        ('{"time": 1}', "data"),
        ('{"time": 1, "data": "x", "dta": 1, "a": 2}', "got a, dta"),
        ('{"time": 1, "end": "soon"}', "eof"),
        ('{"time": 1, "data": "x", "retry": "1"}', "seconds"),
        ('{"time": 1, "data": "x", "id": "a\\nb"}', "one line"),
        ('{"time": 1, "data": "x"}\n{"time": 0.5, "data": "x"}', "line 2"),
        (b"\xff", "UTF-8"),
    ],
)
def test_file_that_is_not_a_recording_is_refused(
    capsys: Capture, tmp_path: Path, text: str | bytes, message: str
) -> None:
    file = tmp_path / "stream.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["serve", str(file)]) == 2
    assert message in capsys.readouterr().err


def test_command_is_a_module_and_a_script(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "argv", ["sseqbridge", "http://localhost", "--path", ""])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "sseqbridge/__main__.py"), run_name="__main__")
    assert left.value.code == 2
    module = subprocess.run(
        [sys.executable, "-m", "sseqbridge", "--version"], capture_output=True, check=True, cwd=ROOT
    )
    script = Path(sys.executable).with_name("sseqbridge")
    assert subprocess.run([script, "--version"], capture_output=True, check=True).stdout == module.stdout
