"""Every example of the README, run as it stands there, but for the addresses of upstreams.

Rule: an example that no function here runs fails the last test. Those of one section are run in
the order in which they stand, by the function that is named for the section.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import ssl
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from django.conf import settings
from django.test import RequestFactory
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from flask import Flask, request

import sseqbridge
from sseqbridge import testing
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, chat_completions, comment, send, silence
from tests.redis_support import needs_redis, redis_server
from tests.support import ROOT, in_thread

README = (ROOT / "README.md").read_text("utf-8")
OPENAI = "https://api.openai.com/v1/chat/completions"
DONE = send("[DONE]")
HEADERS = {"Authorization": "Bearer ..."}

# By section: those that are to be run, of Python and of a shell.
BLOCKS: dict[str, list[tuple[str, str]]] = {}
for _section in re.split(r"^##+ ", README, flags=re.M):
    _found = re.findall(r"^```(python|sh)\n(.*?)^```", _section, re.M | re.S)
    if _found:
        BLOCKS[_section.partition("\n")[0].removeprefix("# ")] = _found

_examples: dict[str, Callable[..., None]] = {}


def example(section: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Note that a function runs the examples of a section."""

    def note(function: Callable[..., None]) -> Callable[..., None]:
        _examples[section] = function
        return function

    return note


class Session:
    """Runs code as one module, which has request_sse, and an upstream's url, headers and data."""

    def __init__(self, url: str, **names: Any) -> None:
        self.url = url
        self.module = types.ModuleType("example")
        self.names: dict[str, Any] = self.module.__dict__
        self.names.update(
            {
                name: getattr(sseqbridge, name)
                for name in ("request_sse", "arequest_sse", "Bridge", "ReconnectionPolicy")
            },
            url=url,
            UPSTREAM=url,
            headers=HEADERS,
            data={"n": 1},
            prompt=lambda body: {"prompt": body},
            **names,
        )

    def run(self, code: str) -> dict[str, Any]:
        code = code.replace(OPENAI, self.url)
        compiled = compile(code, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        made = eval(compiled, self.names)
        if asyncio.iscoroutine(made):
            asyncio.run(made)
        return self.names


@pytest.fixture
def upstream() -> Iterator[SSEServer]:
    """An upstream that says as it is asked: five items, or what `play` was given."""
    with SSEServer([send({"n": n}, id=str(n)) for n in range(5)] + [DONE]) as server:
        yield server


def python(section: str) -> list[str]:
    return [code for language, code in BLOCKS[section] if language == "python"]


def shell(section: str) -> list[str]:
    return [code for language, code in BLOCKS[section] if language == "sh"]


def run_in_shell(code: str, directory: Path, **replaced: str) -> subprocess.CompletedProcess[str]:
    for old, new in {"sseqbridge ": f"{shlex.quote(sys.executable)} -m sseqbridge ", **replaced}.items():
        code = code.replace(old, new)
    environment = {**os.environ, "OPENAI_API_KEY": "sk-test", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-ec", code], check=False, capture_output=True, text=True, timeout=30, cwd=directory, env=environment
    )


@example("sseqbridge")
def test_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    # The commands: the first is what installs this, and then tests/examples/test_quickstart.py; the second runs this.
    [commands] = shell("sseqbridge")
    assert [command.split("#")[0].strip() for command in commands.splitlines()] == [
        "pip install . && python examples/quickstart.py",
        "bash tests/run.sh",
    ]
    [code] = python("sseqbridge")
    with SSEServer(chat_completions("Hello yourself!")) as server:
        Session(server.url).run(code)
        assert server.requests[0].headers["authorization"] == "Bearer ..."
    assert capsys.readouterr().out == "Hello yourself!"
    refusal: list[Step] = [testing.respond(401, framing="length", content_type="application/json"), b'{"a": 1}']
    with SSEServer(refusal) as server, pytest.raises(SystemExit) as left:
        Session(server.url).run(code)
    assert left.value.code == "401: {'a': 1}"


@example("Leave early, or take a few and go on")
def test_leave_early(upstream: SSEServer) -> None:
    leaving, going_on = python("Leave early, or take a few and go on")
    upstream.play([send(1), send(2), silence()])
    it = sseqbridge.request_sse(upstream.url).events
    Session(upstream.url, it=it, enough=lambda item: item == 2).run(leaving)
    upstream.requests[0].wait_aborted()
    assert it.outcome == "closed"
    upstream.play([*(send(n) for n in range(5)), DONE])
    it = sseqbridge.request_sse(upstream.url).events
    names = Session(upstream.url, it=it, header_is_complete=lambda item: item == 2).run(going_on)
    assert (names["first"], names["item"], it.outcome) == (0, 4, "done")


@example("Stop from elsewhere")
def test_stop_from_elsewhere(upstream: SSEServer) -> None:
    [code] = python("Stop from elsewhere")
    upstream.play([send(1), silence()])
    names = Session(upstream.url, threading=threading).run(code)
    assert list(names["it"]) in ([], [1])
    upstream.requests[0].wait_aborted()


# Two ways in one example: the stream of the first is dropped.
one_after_another = pytest.mark.filterwarnings("ignore:.*was dropped while it was open:ResourceWarning")


@one_after_another
@example("Tell a refusal from a stream")
def test_refusal(upstream: SSEServer) -> None:
    [code] = python("Tell a refusal from a stream")
    assert list(Session(upstream.url).run(code)["it"]) == [{"n": n} for n in range(5)]
    upstream.play([testing.respond(503, framing="length", content_type="application/json"), b'{"error": "busy"}'])
    session = Session(upstream.url)
    with pytest.raises(sseqbridge.StatusError) as caught:
        session.run(code)
    assert session.names["error_body"] == {"error": "busy"}
    assert caught.value.body == b'{"error": "busy"}'


@example("Notice a stream that stalls or is cut off")
def test_stall(upstream: SSEServer) -> None:
    [code] = python("Notice a stream that stalls or is cut off")
    upstream.play([send(1)])
    it = Session(upstream.url).run(code)["it"]
    assert next(it) == 1
    with pytest.raises(sseqbridge.TruncatedStreamError):
        next(it)


@example("Read something other than JSON")
def test_other_than_json(upstream: SSEServer) -> None:
    class Delta:
        def __init__(self, value: Any) -> None:
            self.value = value

        @classmethod
        def from_json(cls, text: str) -> Delta:
            return cls(text)

    [code] = python("Read something other than JSON")
    upstream.play([comment("hi"), send("a", event="x")])
    names = Session(upstream.url, Delta=Delta).run(code)
    assert list(names["words"]) == ["a"]
    assert list(names["events"]) == [sseqbridge.Comment("hi"), sseqbridge.ServerSentEvent("x", "a")]
    assert [delta.value for delta in names["deltas"]] == ["a"]


@one_after_another
@example("Outlive a connection")
def test_outlive(upstream: SSEServer) -> None:
    [code] = python("Outlive a connection")
    names = Session(upstream.url).run(code)
    assert len(names["it"].collect()) == 5
    assert names["policy"].attempts == 5


@example("Read many streams at once")
def test_many(upstream: SSEServer) -> None:
    [code] = python("Read many streams at once")
    names = Session(upstream.url, prompts={"a": {"n": 1}, "b": {"n": 2}}).run(code)
    assert (names["name"], len(names["items"])) == ("b", 5)
    assert len(upstream.requests) == 4


@example("Let several threads read one stream")
def test_several_threads(upstream: SSEServer) -> None:
    [code] = python("Let several threads read one stream")
    names = Session(upstream.url).run(code)
    read = [in_thread(names[name].collect) for name in ("for_the_page", "for_the_log", "late")]
    assert [len(each.result(30)) for each in read] == [5, 5, 5]
    assert len(upstream.requests) == 1


@example("Use it in a Flask or Django view")
def test_view(upstream: SSEServer) -> None:
    [code] = python("Use it in a Flask or Django view")
    app = Flask("example")
    Session(upstream.url, app=app, request=request, text_of=lambda chunk: str(chunk["n"])).run(code)
    assert app.test_client().post("/summary", json={"q": 1}).json == {"summary": "01234"}
    assert upstream.requests[0].json() == {"prompt": {"q": 1}}


RELAYED = [f"id: {n}\ndata: {json.dumps({'n': n})}\n\n" for n in range(5)] + ["data: [DONE]\n\n"]


@example("Send the stream on to the browser")
def test_send_on(upstream: SSEServer) -> None:
    in_flask, in_django, in_starlette, made = python("Send the stream on to the browser")
    app = Flask("example")
    session = Session(upstream.url, app=app, request=request)
    session.run(in_flask)
    relayed = "".join(RELAYED)
    assert app.test_client().post("/chat", json={"q": 1}).text.endswith(relayed)

    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"])
    view = Session(upstream.url, json=json, relay=session.names["relay"]).run(in_django)["chat"]
    answer = view(RequestFactory().post("/chat", {"q": 1}, content_type="application/json"))
    assert b"".join(answer.streaming_content).decode().endswith(relayed)
    answer.close()

    api = FastAPI()
    # FastAPI looks its annotations up where the view is defined.
    Session(upstream.url, app=api, Request=Request, relay=session.names["relay"]).run(in_starlette)
    with TestClient(api) as client:
        assert client.post("/chat", json={"q": 1}).text.endswith(relayed)
    assert [received.json() for received in upstream.requests] == [{"prompt": {"q": 1}}] * 3

    worked: list[str] = []
    session.names.update(parts=["a", "b"], work_on=worked.append)
    with app.test_request_context():
        response = session.run(made)["response"]
        text = "".join(piece.decode() for piece in response.response)
    assert re.findall("data: (.*)\n", text) == ['{"done":0,"of":2}', '{"done":1,"of":2}']
    assert worked == ["a", "b"]


@needs_redis
@example("Let an answer outlive its reader")
def test_outlive_the_reader(upstream: SSEServer) -> None:
    served, worker = python("Let an answer outlive its reader")
    with redis_server() as server:
        session = Session(upstream.url)
        names = session.run(served.replace("redis://localhost", server.url))
        with names["log"]:
            client = names["app"].test_client()
            whole = client.get("/chat/7").text
            ids = re.findall("^id: (.*)$", whole, re.M)
            assert len(ids) == 6
            rest = client.get("/chat/7", headers={"Last-Event-ID": ids[3]}).text
            assert re.findall("^data: (.*)$", rest, re.M) == ['{"n": 4}', "[DONE]"]
            assert client.delete("/chat/7").text == "there is nothing to stop"
            assert session.run("id = '8'\n" + worker)["outcome"] == "done"
            assert session.run(worker)["outcome"] is None
            assert client.get("/chat/8").text.count("data: ") == 6
            assert len(upstream.requests) == 2


@example("Bring your own HTTP client")
def test_own_client(
    upstream: SSEServer, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [code] = python("Bring your own HTTP client")
    authority.cert_pem.write_to_path(str(tmp_path / "company.pem"))
    monkeypatch.chdir(tmp_path)
    session = Session("http://upstream.example/chat", ssl=ssl, httpx=httpx)
    # The proxy answers by itself.
    names = session.run(code.replace("http://proxy:3128", upstream.url))
    assert len(names["it"].collect()) == 5
    assert upstream.requests[0].path == "http://upstream.example/chat"
    names["bridge"].close()


@example("In coroutines")
def test_coroutines(upstream: SSEServer) -> None:
    [code] = python("In coroutines")
    assert Session(upstream.url).run(code)["item"] == {"n": 4}


@example("Use it from the command line")
def test_command_line(tmp_path: Path) -> None:
    printing, keeping = shell("Use it from the command line")

    def script(received: ReceivedRequest) -> list[Step]:
        if received.path == "/events":
            return [send("one"), send("[DONE]")]
        assert received.headers["authorization"] == "Bearer sk-test"
        return list(chat_completions("Hello yourself!")(received))

    with SSEServer(script) as server:
        done = run_in_shell(printing, tmp_path, **{"https://example.com": server.url, OPENAI: server.url})
        assert (done.returncode, done.stdout) == (0, "one\nHello yourself!\n")
        assert "a second)" in done.stderr
    (tmp_path / "prompt.json").write_text('{"stream": true, "messages": []}')
    with SSEServer(chat_completions("Hello!")) as server:
        recording, serving = keeping.splitlines()
        done = run_in_shell(recording, tmp_path, **{OPENAI: server.url})
        assert (done.returncode, done.stderr) == (0, "sseqbridge: 4 events in answer.jsonl\n")
    command = [sys.executable, "-m", *shlex.split(serving.replace("8000", "0"))]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().split()[1]
            chunks = sseqbridge.request_sse(url).events.collect()
            assert chunks[1]["choices"][0]["delta"]["content"] == "Hello!"
        finally:
            process.send_signal(signal.SIGINT)


@example("Test what you build on it")
def test_testing(sse_server: SSEServer, tmp_path: Path) -> None:
    by_hand, with_fixture = python("Test what you build on it")
    names = Session("").run(by_hand)
    assert names["status"] == 200
    with contextlib.suppress(sseqbridge.SSEError):
        names["it"].collect()
    Session("").run(with_fixture)["test_reader_goes_on_where_it_was"](sse_server)


@example("See what goes on")
def test_stats(upstream: SSEServer) -> None:
    [code] = python("See what goes on")
    stats = Session(upstream.url).run(code)["stats"]
    # Those of the comment.
    told = re.findall(r"\w+", code.partition("#")[2])
    assert told == list(vars(stats))


def test_every_example_is_run() -> None:
    assert set(BLOCKS) == set(_examples)
    # Whose language is another one is no program.
    languages = re.findall(r"^```(\w+)", README, re.M)
    assert set(languages) == {"python", "sh", "text"}
