"""Runs the snippets and the small programs of the guides by task. The chats have test modules of their own."""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from django.conf import settings
from django.test import RequestFactory
from flask import Flask, request
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

import sseqbridge
import sseqbridge.relay
from examples import endpoint, feed, ollama, prompts, providers
from examples.small_chat.answers import item_of

# Tests, which pytest runs here.
from examples.test_leaving import (  # noqa: F401
    port,
    test_client_that_leaves_a_silent_answer,
    test_client_that_leaves_before_the_head,
)
from examples.test_saved_answers import (  # noqa: F401
    client,
    limits,
    test_client_that_leaves,
    test_complete_answer,
    test_refusal,
    test_silent_upstream,
    test_stalled_upstream,
    test_truncated_answer,
)
from examples.test_tokens import (  # noqa: F401
    test_token_is_renewed_before_it_expires,
    test_token_that_is_not_issued_is_an_error,
    test_token_that_was_refused_is_renewed,
)
from examples.tokens import RenewingAuth
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    chat_completions,
    comment,
    cut,
    expect,
    hold,
    respond,
    send,
    silence,
)
from tests.examples.commands import documented, run_program
from tests.examples.guides import DONE, OPENAI, Session, example, python, run_as_printed, run_in_shell, shell
from tests.local_servers import under_werkzeug
from tests.redis_support import needs_redis, redis_server
from tests.support import ROOT, in_thread, reserved_port, until

# These wait for retries.
test_token_is_renewed_before_it_expires = pytest.mark.slow(test_token_is_renewed_before_it_expires)
test_token_that_was_refused_is_renewed = pytest.mark.slow(test_token_that_was_refused_is_renewed)
# The relay notices the client that has left within a second.
test_client_that_leaves_a_silent_answer = pytest.mark.slow(test_client_that_leaves_a_silent_answer)
test_client_that_leaves_before_the_head = pytest.mark.slow(test_client_that_leaves_before_the_head)

relay = sseqbridge.relay
ITEMS = [{"n": n} for n in range(5)]


# --- Chats ---


def rows_of(directory: Path) -> list[Any]:
    """Return the answers that the guide's `save` has written."""
    with closing(sqlite3.connect(directory / "answers.sqlite3")) as database:
        return database.execute("SELECT key, text, outcome FROM answers").fetchall()


@pytest.mark.parametrize(
    ("ending", "outcome", "last"),
    [
        ([DONE], "done", "data: [DONE]"),
        ([cut()], "error", "event: error"),
        ([silence()], "stopped", "event: cancelled"),
        ([], "error", "event: error"),  # without its end
    ],
    ids=["complete", "cut", "stopped", "without its end"],
)
@example("examples/flask-chat.md", "Save it")
def test_answer_in_a_log_is_saved_once(
    upstream: SSEServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ending: list[Step], outcome: str, last: str
) -> None:
    [code] = python("examples/flask-chat.md", "Save it")
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    monkeypatch.chdir(tmp_path)
    app = Flask("example")
    upstream.play([send({"choices": [{"delta": {"content": "Hel"}}]}), *ending])
    with MemoryLog() as log:
        names = Session("", app=app, log=log, endpoint=endpoint, item_of=item_of).run(code)
        clients = [app.test_client() for _ in range(2)]
        readers: list[Iterator[Any]] = [
            iter(client.post("/saved/a", json={"question": "Hi"}).response) for client in clients
        ]
        for reader in readers:
            assert any(b"Hel" in piece for piece in reader)
        if outcome == "stopped":
            assert log.cancel("a")
        assert all(last in b"".join(reader).decode() for reader in readers)
        until(lambda: rows_of(tmp_path) != [], 30)
    assert rows_of(tmp_path) == [("a", "Hel", outcome)]
    assert len(upstream.requests) == 1
    names["save"]("a", "Hello", "done")
    names["save"]("a", "Hel", "stopped")
    assert rows_of(tmp_path) == [("a", "Hel" if outcome == "done" else "Hello", "done")]


@pytest.mark.slow
def test_refused_answer_in_a_log_is_saved(
    upstream: SSEServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [code] = python("examples/flask-chat.md", "Save it")
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    monkeypatch.chdir(tmp_path)
    app = Flask("example")
    upstream.play([respond(401, json={"error": {"message": "wrong key"}})])
    with MemoryLog() as log:
        names = {"app": app, "log": log, "endpoint": endpoint, "item_of": item_of}
        Session("", **names).run(code)
        response = app.test_client().post("/saved/a", json={"question": "Hi"})
        assert (response.status_code, "event: error" in response.text) == (200, True)
    assert rows_of(tmp_path) == [("a", "", "error")]
    # The record of the warning has the error, whose traceback leads to the stream.
    caplog.clear()


@example("examples/fastapi-chat.md", "Starlette")
def test_starlette_application(upstream: SSEServer) -> None:
    [code] = python("examples/fastapi-chat.md", "Starlette")
    names = {"relay": relay, "partial": functools.partial, "Timeout": sseqbridge.Timeout}
    app = Session(upstream.url, Starlette=Starlette, Route=Route, **names).run(code)["app"]
    with TestClient(app) as requests:
        assert requests.post("/chat", json={"messages": ["Hi"]}).text.endswith("data: [DONE]\n\n")
        upstream.close()
        assert requests.post("/chat", json={"messages": ["Hi"]}).status_code == 502


@pytest.mark.server
@example("examples/django-chat.md", "Chat in Django, saved to the database")
def test_commands_of_the_django_project(tmp_path: Path) -> None:
    # As in the shell of a user; the database is a file in the current directory.
    [commands] = shell("examples/django-chat.md", "Chat in Django, saved to the database")
    commands = f"export PYTHONWARNINGS=error\n{commands}"
    ran = run_in_shell(commands, tmp_path, python=sys.executable)
    assert ran.returncode == 0, ran.stderr
    assert "Superuser created successfully." in ran.stdout
    assert "OK" in ran.stderr
    with sqlite3.connect(tmp_path / "django_chat.sqlite3") as database:
        assert database.execute("SELECT username FROM auth_user").fetchall() == [("ada",)]
    database.close()


@pytest.mark.sdk
@example("examples/sdks.md", "Clients")
@example("examples/sdks.md", "Views")
@example("examples/sdks.md", "Save an answer")
@example("examples/sdks.md", "LangChain")
@example("examples/sdks.md", "Stop a stream elsewhere")
def test_sdks(upstream: SSEServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from examples.sdk_chat.providers import WholeAnswer

    for name in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{name}_API_KEY", "sk-test")
        monkeypatch.setenv(f"{name}_BASE_URL", upstream.url)
    [clients] = python("examples/sdks.md", "Clients")
    in_flask, in_django = python("examples/sdks.md", "Views")
    [save_it] = python("examples/sdks.md", "Save an answer")
    [langchain] = python("examples/sdks.md", "LangChain")
    closed, left = python("examples/sdks.md", "Stop a stream elsewhere")
    app = Flask("example")
    session = Session(upstream.url, app=app, request=request, threading=threading, messages=[], WholeAnswer=WholeAnswer)
    session.run(clients)

    chunks = [
        {"choices": [], "prompt_filter_results": []},
        {"id": "1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}}]},
    ]
    last = {"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    upstream.play([*map(send, chunks), send(last), DONE])
    for code in (in_flask, langchain, save_it):
        session.run(code)
    assert app.test_client().head("/chat?prompt=Hello").status_code == 200
    assert upstream.requests == []
    assert app.test_client().get("/chat?prompt=Hello").text.endswith("data: Hi\n\ndata: [DONE]\n\n")
    assert app.test_client().get("/langchain?prompt=Hello").text.endswith("data: Hi\n\ndata: [DONE]\n\n")

    outcomes = ["eof", "error", "error"]
    for rest, outcome in zip(([send(last), DONE], [], [cut()]), outcomes, strict=True):
        upstream.play([send(chunks[1]), *rest])
        for path in ("/saved", "/chat", "/langchain"):
            text = app.test_client().get(f"{path}?prompt=Hello").text
            assert ("data: [DONE]" in text, "event: error" in text) == (outcome == "eof", outcome == "error"), path
    assert session.names["answers"] == [("Hello", "Hi", outcome) for outcome in outcomes]

    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}
    upstream.play([send(delta, "content_block_delta"), send({"type": "message_stop"}, "message_stop")])
    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"])
    view = session.run(in_django)["answer"]
    response = view(RequestFactory().get("/chat", {"prompt": "Hello"}))
    assert b"".join(response.streaming_content).endswith(b"data: Hi\n\ndata: [DONE]\n\n")
    response.close()
    upstream.play([send(delta, "content_block_delta")])
    response = view(RequestFactory().get("/chat", {"prompt": "Hello"}))
    assert b"event: error" in b"".join(response.streaming_content)
    response.close()

    upstream.play([send(chunks[1]), silence()])
    count = len(upstream.requests)
    session.run(closed)
    assert capsys.readouterr().out == "Hi\nclosed\n"
    session.run(left)
    for received in upstream.requests[count:]:
        received.wait_aborted(30)
    session.names["transport"].close()


@needs_redis
@example("examples/reload.md", "The log")
def test_log_in_redis(upstream: SSEServer) -> None:
    [code] = python("examples/reload.md", "The log")
    upstream.play([send(1), silence()])
    with redis_server() as server:
        session = Session(upstream.url, partial=functools.partial)
        names = session.run(code.replace("redis://localhost", server.url))
        with names["log"]:
            for name in ("stream", "other"):
                assert list(names[name]) in ([], [1])
                assert names[name].outcome == "closed"
            upstream.requests[0].wait_aborted()
    assert len(upstream.requests) == 1


@example("examples/celery.md", "Save the answer")
def test_answer_of_a_worker_is_saved(upstream: SSEServer) -> None:
    [code] = python("examples/celery.md", "Save the answer")
    saved: list[Any] = []

    def save(*row: Any) -> None:
        saved.append(row)

    with MemoryLog() as log:
        produce = Session(upstream.url, log=log, save=save).run(code)["produce_and_save"]
        produce("whole")
        upstream.play([send(0), cut()])
        produce("cut off")
        upstream.play([respond(401)])
        produce("refused")
        assert saved == [("whole", ITEMS, "done"), ("cut off", [0], "error"), ("refused", [], "error")]

        upstream.play([send(0), silence()])
        worker = in_thread(functools.partial(produce, "stopped"))
        with log.open("stopped") as reader:
            assert next(reader) == 0
            produce("stopped")  # another worker's
            assert len(saved) == 3
            assert log.cancel("stopped")
        worker.result(30)
        assert saved[3:] == [("stopped", [0], "closed")]


# --- Scripts ---


@pytest.mark.slow
def test_failures_and_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    run_program(documented("python -m examples.failures"))
    printed = capsys.readouterr().out
    page = (ROOT / "examples/retries.md").read_text("utf-8")
    assert f"$ python -m examples.failures\n{printed}```" in page


class Tokens:
    """A server that accepts the last token that it has issued."""

    def __init__(self) -> None:
        self.issued: list[str] = []

    def __call__(self, received: ReceivedRequest) -> list[Step]:
        if received.path == "/token":
            assert received.body == b"grant_type=client_credentials"
            self.issued.append(f"token-{len(self.issued)}")
            return [respond(200, json={"access_token": self.issued[-1], "expires_in": 3600})]
        if not self.issued or received.headers.get("authorization") != f"Bearer {self.issued[-1]}":
            return [respond(401, content_type="text/plain"), b"expired"]
        return [send(1), DONE]


@example("examples/tokens.md", "Renew a token before it expires")
@example("examples/tokens.md", "Renew a token that was refused")
def test_tokens_that_expire() -> None:
    [by_function] = python("examples/tokens.md", "Renew a token before it expires")
    [by_auth] = python("examples/tokens.md", "Renew a token that was refused")
    tokens = Tokens()
    with SSEServer(tokens) as upstream:
        session = Session(upstream.url, base_url=upstream.url, token_url=f"{upstream.url}/token")
        api = session.run(by_function)["api"]
        assert session.names["chunks"].collect() == [1]
        assert api.request("/chat/completions").events.collect() == [1]
        assert tokens.issued == ["token-0"]
        assert session.run(by_auth)["chunks"].collect() == [1]
        assert tokens.issued == ["token-0", "token-1"]
        changing: Any = sseqbridge.SSEClient(upstream.url, headers=lambda: {"X-Request-ID": uuid4().hex})
        for _ in range(2):
            assert changing.request("/").status == 401
        first, second = (received.headers["x-request-id"] for received in upstream.requests[-2:])
        assert first != second


def test_token_that_another_request_has_renewed_is_used() -> None:
    auth = RenewingAuth("http://h/token")
    requests = [httpx.Request("GET", "http://h/") for _ in range(2)]
    first, second = (auth.auth_flow(request) for request in requests)
    assert next(first) is requests[0]
    assert next(second) is requests[1]
    assert first.send(httpx.Response(401)).url == "http://h/token"
    first.send(httpx.Response(200, json={"access_token": "new"}))
    assert second.send(httpx.Response(401)) is requests[1]
    assert [request.headers["authorization"] for request in requests] == ["Bearer new"] * 2


def price(number: int) -> Step:
    return send({"symbol": "X", "value": number}, event="price", id=str(number))


@pytest.mark.slow
def test_feed_continues_where_it_was(sse_server: SSEServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    position = tmp_path / "feed.position"
    go_on = send("hello", id="2", retry=0.1)
    sse_server.play(
        [price(1), go_on, send("ignored", event="other", id="3"), cut()],
        [expect(last_event_id="3"), price(4)],
        [expect(last_event_id="4"), respond(204)],
        [expect(last_event_id="4"), price(5)],
        [expect(last_event_id="5"), respond(204)],
    )
    feed.follow(sse_server.url, position)
    assert capsys.readouterr().out == "price: X 1\nmessage: hello\nprice: X 4\n"
    assert position.read_text() == "4"
    feed.follow(sse_server.url, position)
    assert capsys.readouterr().out == "price: X 5\n"
    with pytest.raises(sseqbridge.StatusError):
        sse_server.play([respond(401)])
        feed.follow(sse_server.url, position)


@pytest.mark.slow
def test_feed_as_a_program_ends_at_a_signal(sse_server: SSEServer, tmp_path: Path) -> None:
    sse_server.play([price(1), silence()])
    command = [*documented("python -m examples.feed URL").words[:-1], sse_server.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "price: X 1\n"
            until((tmp_path / "feed.position").exists, 30)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert sse_server.requests[0].wait_aborted()


def test_feed_is_stopped_before_the_first_response(sse_server: SSEServer, tmp_path: Path) -> None:
    sse_server.play([silence()])
    stop = threading.Event()
    following = in_thread(lambda: feed.follow(sse_server.url, tmp_path / "feed.position", stop))
    sse_server.wait_for_request()
    stop.set()
    assert following.result(30) is None
    sse_server.assert_aborted()


@pytest.mark.slow
def test_feed_without_a_url_is_a_local_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with SSEServer(feed.prices) as server:
        feed.follow(server.url, tmp_path / "position")
    assert capsys.readouterr().out == "".join(f"price: X {number}\n" for number in range(1, 11))
    command = documented("python -m examples.feed").words
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250, check=True
    )
    assert (ran.stdout.count("price: "), ran.stderr) == (10, "")
    assert not (tmp_path / "feed.position").exists()


def answers_in(path: Path) -> dict[str, str]:
    return {row["name"]: row["text"] for row in map(json.loads, path.read_text("utf-8").splitlines())}


@pytest.fixture
def prompts_upstream(monkeypatch: pytest.MonkeyPatch, bare_tqdm: None) -> Iterator[SSEServer]:
    with SSEServer(chat_completions()) as upstream:
        monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
        yield upstream


@pytest.mark.slow
def test_prompts_are_answered_once(prompts_upstream: SSEServer, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"name": "prompt-1", "text": "one"}\n{"name": "promp', "utf-8")
    assert prompts.main(path).startswith("199 answers saved, 0 failed.")
    answers = answers_in(path)
    assert set(answers) == set(prompts.PROMPTS)
    assert (answers["prompt-1"], answers["prompt-2"]) == ("one", "Say the number 2.")
    assert len(prompts_upstream.requests) == 199
    assert prompts.main(path).startswith("0 answers saved")
    assert len(prompts_upstream.requests) == 199


def test_repair_of_saved_answers_writes_none_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    content = '{"name": "prompt-1", "text": "one"}\n{"name": "promp'
    path.write_text(content, "utf-8")

    def crash(path: Path, length: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "truncate", crash)
        prompts.saved_in(path)
    assert path.read_text("utf-8") == content
    assert prompts.saved_in(path) == {"prompt-1": "one"}
    assert path.read_text("utf-8") == content[: content.index("\n") + 1]


@pytest.mark.slow
def test_failed_prompt_is_repeated_by_the_next_run(
    prompts_upstream: SSEServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.jsonl"
    monkeypatch.setattr(prompts, "PROMPTS", {"a": "Say A.", "b": "Say B."})
    echo = chat_completions()

    def a_is_cut(received: ReceivedRequest) -> Iterable[Step]:
        return [cut()] if b"Say A." in received.body else echo(received)

    prompts_upstream.play(a_is_cut)
    assert prompts.main(path).startswith("1 answers saved, 1 failed.")
    assert "a: " in capsys.readouterr().err
    prompts_upstream.play(echo)
    assert prompts.main(path).startswith("1 answers saved, 0 failed.")
    assert answers_in(path) == {"a": "Say A.", "b": "Say B."}
    assert len(prompts_upstream.requests) == 3


@pytest.mark.slow
def test_prompts_after_an_interrupt(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    echo, go_on, numbers = chat_completions(), threading.Event(), itertools.count()

    def script(received: ReceivedRequest) -> Iterator[Step]:
        if next(numbers) >= 20:
            yield hold(go_on)
        yield from echo(received)

    command = documented("python -m examples.prompts answers.jsonl").words
    without_a_file = documented("python -m examples.prompts").words
    with SSEServer(script) as upstream:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_BASE_URL": upstream.url}
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            until(lambda: path.exists() and path.read_bytes().count(b"\n") == 20, 60)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors.splitlines()[-1]) == (1, "Stopped. Run it again for the rest.")
        assert len(upstream.requests) <= 28
        sent = len(upstream.requests)
        go_on.set()
        again = subprocess.run(
            without_a_file, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250, check=False
        )
        assert again.stdout.startswith("180 answers saved, 0 failed."), again.stderr
        assert len(upstream.requests) == sent + 180
    assert set(answers_in(path)) == set(prompts.PROMPTS)


@pytest.mark.slow
def test_ollama_as_a_program(sse_server: SSEServer) -> None:
    lines = [{"message": {"content": "Hel"}, "done": False}, {"message": {"content": "lo"}, "done": True}]
    head = respond(content_type="application/x-ndjson")
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    sse_server.play([head, body, silence()], [head, body[:40]])
    command = documented('python -m examples.ollama "Why is the sky blue?"').words
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OLLAMA_HOST": sse_server.url}
    run = functools.partial(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")
    assert sse_server.requests[0].json()["messages"] == [{"role": "user", "content": "Why is the sky blue?"}]
    assert "TruncatedStreamError" in run().stderr


def test_ollama_that_refuses(sse_server: SSEServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama, "HOST", sse_server.url)
    sse_server.play([respond(404, json={"error": "model 'x' not found"})])
    with pytest.raises(sseqbridge.StatusError, match="model 'x' not found"):
        list(ollama.answer("Hi"))


def gemini_chunk(text: str, **more: str) -> Step:
    return send({"candidates": [{"content": {"parts": [{"text": text}]}, **more}]})


def test_gemini(sse_server: SSEServer) -> None:
    whole = [gemini_chunk("Hel"), gemini_chunk("lo", finishReason="STOP"), send({"usageMetadata": {}})]
    sse_server.play(whole, [gemini_chunk("Hel")])
    assert "".join(providers.gemini(sse_server.url, "a-key", "Hi")) == "Hello"
    received = sse_server.requests[0]
    assert received.path == "/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    assert received.headers["x-goog-api-key"] == "a-key"
    with pytest.raises(sseqbridge.TruncatedStreamError):
        list(providers.gemini(sse_server.url, "a-key", "Hi"))


def test_gradio(sse_server: SSEServer) -> None:
    outputs = [send([1], event="generating"), send("null", event="heartbeat"), send([2], event="complete")]
    sse_server.play([respond(200, json={"event_id": "e1"})], [*outputs, send("not read")])
    assert list(providers.gradio(f"{sse_server.url}/call/f", "Hi")) == [[1], [2]]
    assert [(each.method, each.path) for each in sse_server.requests] == [("POST", "/call/f"), ("GET", "/call/f/e1")]


def test_langgraph(sse_server: SSEServer) -> None:
    location = {"Location": "/threads/t/runs/r/stream"}
    begin = [respond(200, location), comment("heartbeat"), send({"n": 1}, event="metadata", id="1", retry=0.1), cut()]
    rest = [expect(last_event_id="1"), send({"n": 2}, event="messages", id="2"), send("null", event="end")]
    sse_server.play(begin, rest)
    assert list(providers.langgraph(sse_server.url, "t", "Hi")) == [("metadata", {"n": 1}), ("messages", {"n": 2})]
    assert sse_server.requests[1].path == "/threads/t/runs/r/stream"


def test_what_the_program_of_the_dialects_prints(capsys: pytest.CaptureFixture[str]) -> None:
    run_program(documented("python -m examples.providers"))
    page = (ROOT / "examples/dialects.md").read_text("utf-8")
    assert f"$ python -m examples.providers\n{capsys.readouterr().out}```" in page


def test_other_dialects(upstream: SSEServer) -> None:
    queue = [send('{"msg":"heartbeat"}'), send({"n": 1}), send('{"msg":"close_stream"}'), send("not read")]
    home = [send("ping"), send({"n": 1}), send("ping")]
    for dialect, outcome, steps in (
        (providers.GRADIO_QUEUE, "done", queue),
        (providers.HOME_ASSISTANT, "eof", home),
    ):
        upstream.play(steps)
        it = sseqbridge.request_sse(upstream.url, dialect=dialect).events
        assert (list(it), it.outcome) == ([{"n": 1}], outcome)


@pytest.mark.sdk
@pytest.mark.blocks_its_loop
def test_mcp_client_in_a_flask_view(monkeypatch: pytest.MonkeyPatch) -> None:
    from examples import mcp_view
    from tests.async_libraries.test_mcp import served

    tools = mcp_view.app.test_client()
    with served() as url, mcp_view.stack:
        monkeypatch.setenv("MCP_SERVER", url)
        for path in ("/tools/add", "/shared/add"):
            assert tools.post(path, json={"a": 1, "b": 2}).json == {"result": 3}
            failed: Any = tools.post(path, json={"a": "x", "b": 2})
            assert (failed.status_code, list(failed.json)) == (502, ["error"])
            assert "Input should be a valid integer" in failed.json["error"][0]
        session = mcp_view.shared_client()
        calls = [in_thread(lambda: tools.post("/shared/add", json={"a": 1, "b": 2}).json) for _ in range(4)]
        assert [call.result(60) for call in calls] == [{"result": 3}] * 4
        assert mcp_view.shared_client() is session
    mcp_view.shared_client.cache_clear()


@pytest.mark.sdk
@pytest.mark.server
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_commands_of_the_view(tmp_path: Path) -> None:
    from tests.async_libraries.test_mcp import served
    from tests.browser_support import running

    start = documented("MCP_SERVER=http://localhost:8000/mcp flask --app examples.mcp_view run")
    # The index names it without the server.
    assert documented("flask --app examples.mcp_view run").words == start.words
    curl = documented(
        """curl -d '{"a": 1, "b": 2}' -H 'Content-Type: application/json' http://127.0.0.1:5000/tools/add"""
    )
    with served() as url, reserved_port() as free:
        assert url.endswith("/mcp")
        command = [*start.words, "--port", str(free)]
        with running(command, tmp_path, **dict.fromkeys(start.variables, url)) as program:
            program.wait_until_serving(f"http://127.0.0.1:{free}")
            words = [word.replace("5000", str(free)) for word in curl.words]
            done = subprocess.run([*words, "--silent"], capture_output=True, text=True, timeout=250, check=True)
    assert json.loads(done.stdout) == {"result": 3}


@pytest.mark.sdk
@pytest.mark.blocks_its_loop
def test_mcp_tool_that_takes_too_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from examples import mcp_view
    from tests.async_libraries.test_mcp import served

    def run_with_little_time(call: Any, timeout: float) -> Any:
        return sseqbridge.run(call, timeout=0.2)

    with served() as url:
        monkeypatch.setenv("MCP_SERVER", url)
        monkeypatch.setattr(mcp_view, "run", run_with_little_time)
        late = mcp_view.app.test_client().post("/tools/wait", json={"directory": str(tmp_path)})
        assert (late.status_code, late.json) == (504, {"error": "the tool took too long"})


@pytest.mark.sdk
@pytest.mark.blocks_its_loop
@example("examples/async-libraries.md", "A session: an MCP client in a Flask view")
def test_mcp_server_over_stdio(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    # With capfd: mcp passes sys.stderr on to the server, as it was when mcp was imported, which needs a descriptor.
    [code] = python("examples/async-libraries.md", "A session: an MCP client in a Flask view")
    monkeypatch.chdir(ROOT)
    Session("").run(code.replace("my_mcp_server", "tests.apps.mcp_server"))
    assert "name='add'" in capfd.readouterr().out


# --- Before and after ---


@example("examples/testing.md", "Scripts")
def test_scripts_of_an_upstream() -> None:
    [steps, function] = python("examples/testing.md", "Scripts")
    with SSEServer() as upstream:
        run_as_printed(steps)["test_reader_resumes_after_a_cut"](upstream)
    names = run_as_printed(function)
    with SSEServer() as upstream:
        names["test_api"](upstream)
        assert sseqbridge.request_sse(upstream.url).status == 401
        response = httpx.get(f"{upstream.url}/models?limit=1", headers={"Authorization": "Bearer secret"})
        assert response.json() == {"models": ["small"]}


RESPONSE = 'flask.Response(events(flask.request.get_json()), mimetype="text/event-stream")'
UNSAFE = {
    "as printed": RESPONSE,
    "relay over httpx": "relay.flask.stream_response(events(flask.request.get_json()))",
    "response over request_sse": RESPONSE.replace("events(", "lines("),
}


def lines(upstream: str, data: object) -> Iterator[str]:
    return (f"data: {text}\n\n" for text in sseqbridge.request_sse(upstream, data=data, decode="text").events)


def unsafe_view(upstream: str, view: str) -> Flask:
    [code] = python("examples/testing.md", "A view on a web server")
    assert RESPONSE in code
    names = {"relay": relay, "lines": functools.partial(lines, upstream)}
    app: Flask = Session("", **names).run(code.replace(RESPONSE, view))["create_app"](upstream)
    return app


@pytest.mark.slow
@pytest.mark.parametrize("view", UNSAFE.values(), ids=list(UNSAFE))
@pytest.mark.parametrize("leave", [test_client_that_leaves_a_silent_answer, test_client_that_leaves_before_the_head])
@example("examples/testing.md", "A view on a web server")
def test_unsafe_view_fails_the_tests_with_a_server(
    view: str, leave: Callable[[SSEServer, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The relay checks the socket every second.
    patient = functools.partialmethod(SSEServer.assert_aborted, timeout=1.5)
    monkeypatch.setattr(SSEServer, "assert_aborted", patient)
    with SSEServer() as upstream:
        server = under_werkzeug(unsafe_view(upstream.url, view), joins_threads=True)
        with server as url, closing(upstream), pytest.raises(AssertionError, match="its client is still connected"):
            leave(upstream, int(url.rpartition(":")[2]))


def test_unsafe_view_passes_with_a_test_client(sse_server: SSEServer) -> None:
    sse_server.play([send("Hello"), silence()])
    response = unsafe_view(sse_server.url, RESPONSE).test_client().post("/ask", json={})
    assert next(iter(response.response)) == b"data: Hello\n"
    response.close()
    sse_server.assert_aborted()


@example("examples/testing.md", "JSON Lines")
def test_script_of_json_lines(sse_server: SSEServer) -> None:
    [code] = python("examples/testing.md", "JSON Lines")
    run_as_printed(code)["test_answer_in_lines"](sse_server)


@pytest.mark.slow
@example("examples/coming-from.md", "curl")
def test_instead_of_curl(tmp_path: Path) -> None:
    [command] = shell("examples/coming-from.md", "curl")
    (tmp_path / "prompt.json").write_text('{"stream": true, "messages": []}')
    with SSEServer([send("a"), DONE]) as server:
        ran = run_in_shell(command, tmp_path, **{OPENAI: server.url})
        assert (ran.returncode, ran.stdout) == (0, "a\n")
        assert server.requests[0].headers["content-type"] == "application/json"


def test_program_with_other_ways_prints_what_the_guide_shows(capsys: pytest.CaptureFixture[str]) -> None:
    run_program(documented("python -m examples.coming_from"))
    printed = capsys.readouterr().out
    assert "TruncatedStreamError" in printed
    assert f"```text\n{printed}```\n" in (ROOT / "examples/coming-from.md").read_text()


@example("examples/coming-from.md", "httpx-sse")
@example("examples/coming-from.md", "requests")
@example("examples/coming-from.md", "A thread per request")
def test_instead_of_other_packages(upstream: SSEServer, capsys: pytest.CaptureFixture[str]) -> None:
    [httpx_sse] = python("examples/coming-from.md", "httpx-sse")
    [requests] = python("examples/coming-from.md", "requests")
    [threads] = python("examples/coming-from.md", "A thread per request")
    session = Session(upstream.url)
    upstream.play([send("a", event="x", id="1"), DONE])
    session.run(httpx_sse)
    assert capsys.readouterr().out == "x a 1\nmessage [DONE] 1\n"
    upstream.play([send(1), DONE])
    session.run(requests)
    assert capsys.readouterr().out == "1\n"
    session.run(threads)
    assert sorted(capsys.readouterr().out.splitlines()) == ["a 1", "b 1"]
