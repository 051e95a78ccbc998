"""Runs the examples of README.md and of the pages about one feature, with a local server as the upstream."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import shlex
import signal
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from django.conf import settings
from django.test import RequestFactory
from flask import Flask, request

import sseqbridge
import sseqbridge.relay
from examples import endpoint
from sseqbridge import testing
from sseqbridge.resume import redis
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    chat_completions,
    comment,
    cut,
    send,
    silence,
)
from tests.examples.commands import documented
from tests.examples.guides import DONE, OPENAI, Session, example, python, run_as_printed, run_in_shell, shell
from tests.support import in_thread


@example("README.md", "sseqbridge")
def test_first_example(capsys: pytest.CaptureFixture[str]) -> None:
    # test_commands.py, test_quickstart.py and test_run_script.py run the commands of the other block.
    [code] = python("README.md", "sseqbridge")
    with SSEServer(chat_completions("Hello yourself!")) as server:
        Session(server.url).run(code)
        assert server.requests[0].headers["authorization"] == "Bearer ..."
    assert capsys.readouterr().out == "Hello yourself!"


def test_first_example_with_chunks_of_real_providers(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = python("README.md", "sseqbridge")
    chunks: list[Any] = [
        {"choices": [], "prompt_filter_results": []},  # Azure, first
        {"choices": [{"delta": {"role": "assistant"}}]},
        {"choices": [{"delta": {"content": "Hello", "reasoning_content": None}}]},
        {"choices": [{"delta": {"content": None, "tool_calls": []}}]},
        {"choices": [{"delta": {"content": " there"}}], "usage": None},
        {"choices": [{"finish_reason": "stop", "delta": None}]},
        {"choices": [{"finish_reason": "stop"}]},
        {"choices": None},
        {"usage": {"total_tokens": 3}},  # with include_usage, last
    ]
    with SSEServer([comment("OPENROUTER PROCESSING"), *map(send, chunks), comment("keep-alive"), DONE]) as server:
        Session(server.url).run(code)
    assert capsys.readouterr().out == "Hello there"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([testing.respond(401, framing="length", content_type="application/json"), b'{"a": 1}'], "\nStatusError: "),
        ([send({"error": {"message": "overloaded"}})], "\nUpstreamError: "),
        ([send({"choices": []}), testing.cut()], "\nTruncatedStreamError: "),
        ([send("{")], "\nDecodeError: "),
        ([testing.reset()], "\nReadError: "),
    ],
)
def test_first_example_with_failures(steps: list[Step], message: str) -> None:
    [code] = python("README.md", "sseqbridge")
    with SSEServer(steps) as server, pytest.raises(SystemExit) as left:
        Session(server.url).run(code)
    assert str(left.value.code).startswith(message)


@example("examples/stopping.md", "Leave the loop")
def test_leave_the_loop(upstream: SSEServer) -> None:
    leaving, with_block = python("examples/stopping.md", "Leave the loop")
    upstream.play([send(1), send(2), silence()])
    it = sseqbridge.request_sse(upstream.url).events
    Session(upstream.url, it=it, enough=lambda item: item == 2).run(leaving)
    upstream.requests[0].wait_aborted(30)
    assert it.outcome == "closed"
    names = Session(upstream.url, enough=lambda item: item == 2).run(with_block)
    upstream.requests[1].wait_aborted(30)
    assert names["it"].outcome == "closed"


@example("examples/reading.md", "Read part of a stream, then continue")
def test_read_part_of_a_stream(upstream: SSEServer) -> None:
    [code] = python("examples/reading.md", "Read part of a stream, then continue")
    it = sseqbridge.request_sse(upstream.url).events
    names = Session(upstream.url, it=it, header_is_complete=lambda item: item == {"n": 2}).run(code)
    assert (names["first"], names["item"], it.outcome) == ({"n": 0}, {"n": 4}, "done")


@example("examples/stopping.md", "Stop it from another thread")
def test_stop_from_another_thread(upstream: SSEServer) -> None:
    [code] = python("examples/stopping.md", "Stop it from another thread")
    upstream.play([send(1), silence()])
    names = Session(upstream.url, threading=threading).run(code)
    assert list(names["it"]) in ([], [1])
    upstream.requests[0].wait_aborted(30)


@example("examples/stopping.md", "Stop a block of code")
def test_stop_a_block_of_code(upstream: SSEServer, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = python("examples/stopping.md", "Stop a block of code")
    upstream.play([send(1), silence()])
    stop = threading.Event()
    saved: list[Any] = []

    def save(item: Any) -> None:
        saved.append(item)
        stop.set()

    Session(upstream.url, stop=stop, save=save, cancel_on=sseqbridge.cancel_on).run(code)
    assert saved == [1]
    assert capsys.readouterr().out == "stopped\n"
    upstream.requests[0].wait_aborted()


# The example shows two alternatives, and drops the stream of the first.
drops_a_stream = pytest.mark.filterwarnings("ignore:.*was dropped while it was open:ResourceWarning")


@drops_a_stream
@example("examples/errors.md", "Handle a status other than 200")
def test_status_other_than_200(upstream: SSEServer) -> None:
    [code] = python("examples/errors.md", "Handle a status other than 200")
    assert list(Session(upstream.url).run(code)["it"]) == [{"n": n} for n in range(5)]
    upstream.play([testing.respond(503, framing="length", content_type="application/json"), b'{"error": "busy"}'])
    session = Session(upstream.url)
    with pytest.raises(sseqbridge.StatusError) as caught:
        session.run(code)
    assert session.names["error_body"] == {"error": "busy"}
    assert caught.value.body == b'{"error": "busy"}'


@example("examples/reading.md", "Read text, events or your own type")
def test_text_events_and_own_types(upstream: SSEServer) -> None:
    class Delta:
        def __init__(self, value: Any) -> None:
            self.value = value

        @classmethod
        def from_json(cls, text: str) -> Delta:
            return cls(text)

    [code] = python("examples/reading.md", "Read text, events or your own type")
    upstream.play([comment("hi"), send("a", event="x")])
    names = Session(upstream.url, Delta=Delta).run(code)
    assert list(names["texts"]) == ["a"]
    assert list(names["events"]) == [sseqbridge.Comment("hi"), sseqbridge.ServerSentEvent("x", "a")]
    assert [delta.value for delta in names["deltas"]] == ["a"]


@drops_a_stream
@example("examples/reconnecting.md", "Turn it on")
def test_reconnecting(upstream: SSEServer) -> None:
    [code] = python("examples/reconnecting.md", "Turn it on")
    names = Session(upstream.url).run(code)
    assert len(names["it"].collect()) == 5
    assert names["policy"].attempts == 5


@example("examples/reconnecting.md", "The first response")
def test_first_connection_is_tried_forever(upstream: SSEServer) -> None:
    [code] = python("examples/reconnecting.md", "The first response")
    upstream.play([testing.respond(503)], [cut()], [send(1), DONE])
    names = Session(upstream.url).run(code.replace("reconnect=True", "reconnect=ReconnectionPolicy(delay=0.01)"))
    assert names["it"].collect() == [1]
    assert names["timeout"].total == float("inf")


@example("examples/reconnecting.md", "Requests with a body")
def test_resuming_by_another_request(upstream: SSEServer) -> None:
    by_get, by_function = python("examples/reconnecting.md", "Requests with a body")
    result = {"jsonrpc": "2.0", "id": 1, "result": {}}
    upstream.play([send({"n": 1}, id="a"), testing.cut()], [send(result)])
    at_once = by_get.replace('resume="get"', 'resume="get", delay=0.01')
    assert Session(upstream.url, call={"id": 1}).run(at_once)["it"].collect() == [{"n": 1}, result]
    assert upstream.requests[-1].method == "GET"
    names = Session(upstream.url).run(by_function)
    attempt = sseqbridge.Attempt(1, "POST", upstream.url, httpx.Headers(), "", httpx.Headers())
    assert names["resume"](attempt) is None
    names["position"].update(id="resp_1", number=7)
    resumed = names["policy"].resume(attempt)
    assert resumed == sseqbridge.Resume("GET", f"{upstream.url}/resp_1?stream=true&starting_after=7")


def lines(*values: Any) -> list[Step]:
    body = "".join(f"{json.dumps(each)}\n" for each in values)
    return [testing.respond(content_type="application/x-ndjson"), body.encode()]


@example("examples/json-lines.md", "Clients, coroutines, and many streams")
def test_clients_of_json_lines(upstream: SSEServer, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = python("examples/json-lines.md", "Clients, coroutines, and many streams")
    upstream.play(lines({"response": "Hel"}, {"response": "lo"}))
    names = Session(upstream.url).run(code.replace("http://localhost:11434", upstream.url))
    assert sorted(capsys.readouterr().out.splitlines()) == ["sea Hello", "sky Hello"]
    assert asyncio.run(names["main"]()) == [{"response": "Hel"}, {"response": "lo"}]
    assert upstream.requests[-1].json() == {"model": "llama3.2", "prompt": "Why is grass green?"}


@example("examples/json-lines.md", "Watch Kubernetes")
def test_watch_kubernetes(upstream: SSEServer) -> None:
    [code] = python("examples/json-lines.md", "Watch Kubernetes")
    changes = [{"type": "ADDED", "object": {"metadata": {"resourceVersion": str(n)}}} for n in (1, 2)]
    upstream.play(lines(*changes), lines({"type": "ERROR", "object": {"code": 410}}))
    names = Session(upstream.url, request_jsonl=sseqbridge.request_jsonl).run(code)
    assert list(names["watch"](upstream.url, {}, "0")) == changes
    assert "resourceVersion=2" in upstream.requests[1].path


@example("examples/many-streams.md", "merge and gather")
def test_merge_and_gather(upstream: SSEServer) -> None:
    [code] = python("examples/many-streams.md", "merge and gather")
    names = Session(upstream.url, base_url=upstream.url, prompts={"a": {"n": 1}, "b": {"n": 2}}).run(code)
    assert (names["name"], len(names["items"])) == ("b", 5)
    assert len(upstream.requests) == 4


@example("examples/client.md", "SSEClient and Call")
def test_client(upstream: SSEServer) -> None:
    [code] = python("examples/client.md", "SSEClient and Call")
    names = Session(upstream.url, base_url=f"{upstream.url}/v1", key="sk-test").run(code)
    try:
        streams = [names["response"].events, *(names[name] for name in ("it", "texts", "stream"))]
        assert [len(stream.collect()) for stream in streams] == [5] * 4
        assert {request.path for request in upstream.requests} == {"/v1/chat/completions"}
        assert {request.headers["authorization"] for request in upstream.requests} == {"Bearer sk-test"}
    finally:
        names["log"].close()


@example("examples/tee.md", "tee")
def test_tee(upstream: SSEServer) -> None:
    [code] = python("examples/tee.md", "tee")
    names = Session(upstream.url).run(code)
    read = [in_thread(names[name].collect) for name in ("for_the_page", "for_the_log", "late")]
    assert [len(each.result(30)) for each in read] == [5, 5, 5]
    assert len(upstream.requests) == 1


@example("examples/reading.md", "Use it in a Flask or Django view")
def test_view_without_relay(upstream: SSEServer) -> None:
    [code] = python("examples/reading.md", "Use it in a Flask or Django view")
    app = Flask("example")
    Session(upstream.url, app=app, request=request, endpoint=endpoint).run(code)
    upstream.play(chat_completions("A short text."))
    messages = [{"role": "user", "content": "Sum up."}]
    assert app.test_client().post("/summary", json={"messages": messages}).json == {"summary": "A short text."}
    assert upstream.requests[0].json()["messages"] == messages


RELAYED = [f"id: {n}\ndata: {json.dumps({'n': n})}\n\n" for n in range(5)] + ["data: [DONE]\n\n"]


@example("examples/relay.md", "SDKs behind a relay")
def test_relay_for_cohere() -> None:
    [code] = python("examples/relay.md", "SDKs behind a relay")
    with SSEServer([send({"n": 1}), cut()]) as upstream, Flask(__name__).test_request_context("/"):
        names = {
            "relay": sseqbridge.relay,
            "ServerSentEvent": sseqbridge.ServerSentEvent,
            "json": json,
            "partial": functools.partial,
        }
        body = Session(upstream.url, **names).run(code)["response"].get_data(as_text=True)
    assert '"finish_reason": "ERROR", "error": "TruncatedStreamError"' in body


@example("examples/relay.md", "Views")
@example("examples/relay.md", "Relay your own events")
def test_relay(upstream: SSEServer) -> None:
    in_flask, in_django, in_starlette = python("examples/relay.md", "Views")
    [made] = python("examples/relay.md", "Relay your own events")
    app = Flask("example")
    session = Session(upstream.url, app=app, request=request)
    session.run(in_flask)
    relayed = "".join(RELAYED)
    question = {"messages": [{"role": "user", "content": "Hi"}]}
    assert app.test_client().post("/chat", json=question).text.endswith(relayed)

    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"])
    shared = {name: session.names[name] for name in ("relay", "partial", "Timeout", "ask", "prompt")}
    view = Session(upstream.url, json=json, **shared).run(in_django)["chat"]
    django_response = view(RequestFactory().post("/chat", question, content_type="application/json"))
    assert b"".join(django_response.streaming_content).decode().endswith(relayed)
    django_response.close()

    # Only here: each process of a run imports this module.
    from fastapi import FastAPI, Request
    from fastapi.testclient import TestClient

    api = FastAPI()
    # FastAPI resolves annotations in the module that defines the view.
    Session(upstream.url, app=api, Request=Request, **shared).run(in_starlette)
    with TestClient(api) as client:
        assert client.post("/chat", json=question).text.endswith(relayed)
    sent = {"model": "gpt-4o-mini", **question, "stream": True}
    assert [received.json() for received in upstream.requests] == [sent] * 3

    worked: list[str] = []
    session.names.update(parts=["a", "b"], work_on=worked.append)
    with app.test_request_context():
        response = session.run(made)["response"]
        text = "".join(piece.decode() for piece in response.response)
    assert re.findall("data: (.*)\n", text) == ['{"done":0,"of":2}', '{"done":1,"of":2}', "[DONE]"]
    assert worked == ["a", "b"]


@example("examples/relay.md", "Save an answer")
@example("examples/relay.md", "Errors before the stream")
def test_saved_answer(upstream: SSEServer) -> None:
    [answer] = python("examples/relay.md", "Save an answer")
    [handlers] = python("examples/relay.md", "Errors before the stream")
    app = Flask("example")
    session = Session(upstream.url, app=app, request=request)
    session.run(python("examples/relay.md", "Views")[0])
    session.run(handlers)
    app.add_url_rule("/", view_func=session.run(answer)["answer"], defaults={"question": "why"})
    upstream.play([send({"choices": [{"delta": {"content": "so"}}]}), send({"choices": []}), DONE])
    assert app.test_client().get("/").text.endswith("data: [DONE]\n\n")
    upstream.close()
    assert app.test_client().get("/").status_code == 502
    assert session.names["answers"] == [("why", "so", "done"), ("why", "", "error")]


@example("examples/relay.md", "Other frameworks")
def test_relay_in_aiohttp(upstream: SSEServer) -> None:
    from aiohttp import web
    from aiohttp.test_utils import TestClient as AiohttpClient
    from aiohttp.test_utils import TestServer as AiohttpServer

    [code] = python("examples/relay.md", "Other frameworks")
    names = {"relay": sseqbridge.relay, "partial": functools.partial, "aclosing": contextlib.aclosing, "web": web}
    chat = Session(upstream.url, **names).run(code)["chat"]

    async def main() -> str:
        app = web.Application()
        app.router.add_get("/", chat)
        client: Any = AiohttpClient(AiohttpServer(app))
        async with client, client.get("/") as response:
            text: str = await response.text()
            return text

    assert asyncio.run(main()).endswith("".join(RELAYED))


@example("examples/browser.md", "Read a relay in a browser")
def test_module_is_copied_from_the_package_or_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copying, serving = python("examples/browser.md", "Read a relay in a browser")
    monkeypatch.chdir(tmp_path)
    names = run_as_printed(copying)
    assert sorted(path.name for path in (tmp_path / "static").iterdir()) == ["relay.d.ts", "relay.js"]
    app = Flask(__name__)
    Session("", app=app, files=names["files"]).run(serving)
    response = app.test_client().get("/relay.js")
    assert response.mimetype == "text/javascript"
    assert response.data == (tmp_path / "static/relay.js").read_bytes()
    response.close()


@example("examples/resume.md", "Agents and events of your own")
def test_log_of_an_agent(upstream: SSEServer, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = python("examples/resume.md", "Agents and events of your own")
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    with sseqbridge.resume.MemoryLog() as log:
        names = {"log": log, "id": "7", "question": "Why?", "search": lambda question: ["a book"]}
        items = Session("", endpoint=endpoint, **names).run(code)["events"].collect()
    assert items == [{"step": "searching"}, *({"n": n} for n in range(5)), {"step": "done"}]
    [message] = upstream.requests[0].json()["messages"]
    assert message["content"] == "Why? Use these sources: ['a book']"


@example("examples/http-client.md", "Proxies, certificates, HTTP/2")
def test_http_client(
    upstream: SSEServer, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [code] = python("examples/http-client.md", "Proxies, certificates, HTTP/2")
    authority.cert_pem.write_to_path(str(tmp_path / "company.pem"))
    monkeypatch.chdir(tmp_path)
    session = Session("http://upstream.example/chat", ssl=ssl, httpx=httpx)
    # The proxy answers the request itself.
    names = session.run(code.replace("http://proxy:3128", upstream.url))
    assert len(names["it"].collect()) == 5
    assert upstream.requests[0].path == "http://upstream.example/chat"
    names["bridge"].close()


@example("examples/coroutines.md", "arequest_sse")
def test_coroutines(upstream: SSEServer) -> None:
    [code] = python("examples/coroutines.md", "arequest_sse")
    assert Session(upstream.url).run(code)["item"] == {"n": 4}


def use_openai_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")


# The SDK reads files, and has the loop's executor look at the platform, when it is first used.
@pytest.mark.slow
@pytest.mark.blocks_its_loop
@pytest.mark.leaves("thread")
@example("examples/async-libraries.md", "A stream: AsyncOpenAI in a script")
@example("examples/async-libraries.md", "Combine it with other streams")
def test_async_openai(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    [streaming] = python("examples/async-libraries.md", "A stream: AsyncOpenAI in a script")
    [combining] = python("examples/async-libraries.md", "Combine it with other streams")
    app = Flask("example")
    with SSEServer(chat_completions()) as server, SSEServer([send({"n": 1}), DONE]) as other:
        use_openai_at(server.url, monkeypatch)
        session = Session(other.url, app=app)
        session.run(streaming)
        assert capsys.readouterr().out == "Hello!"
        session.run(combining)
        lines = capsys.readouterr().out.splitlines()
        assert "other {'n': 1}" in lines
        assert lines[-2:] == ["Hello! Hello!", "Goodbye! Goodbye!"]
        assert "data: Hello!\n\n" in app.test_client().get("/chat").text


@pytest.mark.slow
@example("examples/command-line.md", "Print a stream")
@example("examples/command-line.md", "Record and replay")
def test_command_line(tmp_path: Path) -> None:
    [printing] = shell("examples/command-line.md", "Print a stream")
    [keeping] = shell("examples/command-line.md", "Record and replay")

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
    command = [*documented("python -m sseqbridge").words, *shlex.split(serving.replace("8000", "0"))[1:]]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().split()[1]
            chunks = sseqbridge.request_sse(url).events.collect()
            assert chunks[1]["choices"][0]["delta"]["content"] == "Hello!"
        finally:
            process.send_signal(signal.SIGINT)


@example("examples/testing.md", "APIs of providers")
def test_providers_apis(sse_server: SSEServer) -> None:
    [code] = python("examples/testing.md", "APIs of providers")
    run_as_printed(code)["test_application_survives_a_stalled_answer"](sse_server)


@example("examples/observability.md", "Counters")
def test_counters(upstream: SSEServer) -> None:
    [code] = python("examples/observability.md", "Counters")
    stats = Session(upstream.url).run(code)["stats"]
    in_the_comment = re.findall(r"\w+", code.partition("#")[2])
    assert in_the_comment == list(vars(stats))


@example("examples/resume.md", "Logs")
def test_log_behind_sentinels() -> None:
    [code] = python("examples/resume.md", "Logs")
    names = Session("http://127.0.0.1:9", RedisLog=redis.RedisLog).run(code)
    # Nothing connects before the log is used.
    names["log"].close()
