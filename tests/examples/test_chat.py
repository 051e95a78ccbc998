"""The page of examples/flask_chat on real servers, and nginx in front."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.flask_chat.scripted import PROMPTS, answers
from sseqbridge import (
    EventStream,
    ServerSentEvent,
    StatusError,
    StreamTimeoutError,
    TruncatedStreamError,
    UpstreamError,
    request_sse,
)
from sseqbridge.testing import SSEServer, raw, respond
from tests.browser_support import FLASK_CHAT, ControlledUpstream, Program, running
from tests.examples.commands import documented
from tests.support import ROOT, reserved_port

pytestmark = pytest.mark.server

LISTENS = r"http://127\.0\.0\.1:\d+"

GUNICORN = documented("gunicorn -k gthread --threads 100 'examples.flask_chat.app:create_app()'")
BEHIND_NGINX = documented(
    "gunicorn --bind 127.0.0.1:8000 -k gthread --threads 100 'examples.flask_chat.app:create_app()'"
)

SERVERS = {
    "flask": [*FLASK_CHAT, "{port}"],
    "flask gunicorn": [*GUNICORN.words, "--bind", "127.0.0.1:{port}"],
    "flask behind nginx": [word.replace("8000", "{port}") for word in BEHIND_NGINX.words],
}


class Site:
    """A served example, and requests like those of a browser."""

    def __init__(self, name: str, url: str, client: httpx.Client) -> None:
        self.name = name
        self.url = url
        self.client = client
        self._streams: list[EventStream[Any]] = []

    def ask(self, *questions: str) -> EventStream[Any]:
        data = {"messages": [{"role": "user", "content": question} for question in questions]}
        return self._opened("/chat", data=data)

    def get(self, question: str, last_event_id: str = "") -> EventStream[Any]:
        return self._opened("/chat", headers={"Last-Event-ID": last_event_id}, params={"prompt": question})

    def counts(self) -> EventStream[Any]:
        """Return the stream of the panel's figures."""
        events = self._opened("/panel")
        assert events.next(30)["suggestions"]
        return events

    def _opened(self, path: str, **options: Any) -> EventStream[Any]:
        self._streams.append(request_sse(f"{self.url}{path}", error_events="yield", **options).events)
        return self._streams[-1]

    def reset(self) -> None:
        """Close all connections."""
        for events in self._streams:
            events.close()
        self._streams.clear()


@contextmanager
def serving(name: str, port: int, cwd: Path, **variables: str) -> Iterator[tuple[Site, Program]]:
    command = [argument.format(port=port) for argument in SERVERS[name]]
    url = f"http://127.0.0.1:{port}"
    # gunicorn keeps a control socket there.
    variables["HOME"] = str(cwd)
    # All tests share this client, so no connection may outlive its test.
    limits = httpx.Limits(max_keepalive_connections=0)
    with running(command, cwd, **variables) as program, httpx.Client(timeout=30, limits=limits) as client:
        program.wait_until_serving(url)
        site = Site(name, url, client)
        yield site, program
        site.reset()


@pytest.fixture(scope="module")
def upstream() -> Iterator[ControlledUpstream]:
    with ControlledUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module", params=["flask", "flask gunicorn"])
def started(
    request: pytest.FixtureRequest, upstream: ControlledUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Each of the servers, once for all tests."""
    cwd = tmp_path_factory.mktemp("cwd")
    with reserved_port() as port, serving(request.param, port, cwd, OPENAI_BASE_URL=upstream.base_url) as (site, _):
        yield site


@pytest.fixture
def site(started: Site, upstream: ControlledUpstream) -> Iterator[Site]:
    upstream.reset()
    yield started
    started.reset()


def test_page_is_served_with_its_resources(site: Site) -> None:
    for path, kind in {
        "/": "text/html",
        "/static/chat.css": "text/css",
        "/static/chat.js": "javascript",
        "/static/ways_in.js": "javascript",
        "/static/panel.js": "javascript",
        "/static/relay.js": "javascript",
    }.items():
        response = site.client.get(f"{site.url}{path}")
        assert response.status_code == 200
        # text/ or application/, depending on the machine.
        assert response.headers["content-type"].partition(";")[0].endswith(kind)
    for path in ("/static/nothing", "/static/%2e%2e", "/static/..%2fapp.py"):
        assert site.client.get(f"{site.url}{path}").status_code == 404


def test_a_post_streams(site: Site, upstream: ControlledUpstream) -> None:
    events = site.ask("one", "two")
    response = upstream.response()
    assert response.request.path == "/v1/chat/completions"
    body = response.request.json()
    assert (body["stream"], [message["content"] for message in body["messages"]]) == (True, ["one", "two"])
    response.send_text("a\r\nb")
    assert events.next(30) == {"text": "a\r\nb"}
    response.send_text("c")
    assert events.next(30) == {"text": "c"}
    response.end()
    assert (list(events), events.outcome) == ([], "done")
    assert events.headers["x-accel-buffering"] == "no"


def idle_figures(counts: EventStream[Any]) -> Any:
    """Return the panel's figures once the server has noticed the disconnects of earlier tests."""
    while (figures := counts.next(30))["open"]:
        pass
    return figures


def test_disconnect_aborts_the_silent_upstream(site: Site, upstream: ControlledUpstream) -> None:
    counts = site.counts()
    before = idle_figures(counts)
    events = site.ask("think")
    response = upstream.response()
    response.send_text("Hm")
    assert events.next(30) == {"text": "Hm"}
    assert counts.next(30) == before | {"open": 1}
    events.close()
    response.request.wait_aborted()
    assert counts.next(30) == before | {"stopped": before["stopped"] + 1}


def test_get_continues_after_the_last_event_id(site: Site, upstream: ControlledUpstream) -> None:
    events = site.get("count", "3")
    response = upstream.response()
    assert response.request.headers["last-event-id"] == "3"
    response.send_text("four")
    assert events.next(30) == {"text": "four"}
    assert events.last_event == ServerSentEvent(data='{"text":"four"}', id="4", retry=0.05)


def test_errors_are_reported_to_the_client(site: Site, upstream: ControlledUpstream) -> None:
    events = site.ask("break")
    upstream.response().send_text("So f")
    upstream.response().cut()
    assert list(events) == [
        {"text": "So f"},
        {
            "type": "error",
            "message": "the upstream's stream was cut off",
            "errorText": "the upstream's stream was cut off",
            "error": {"type": "TruncatedStreamError", "message": "the upstream's stream was cut off"},
        },
    ]
    refusal = b'{"error": {"message": "Slow down."}}'
    upstream.script = [respond(429, {"Retry-After": "20"}, "length", "application/json"), raw(refusal)]
    refused = site.ask("refuse")
    assert (refused.status, refused.headers["retry-after"]) == (429, "20")
    message = "the upstream refused the request: 429 Too Many Requests"
    assert list(refused) == [{"error": {"type": "upstream_error", "status": 429, "message": message}}]


def test_malformed_requests_are_refused(site: Site, upstream: ControlledUpstream) -> None:
    chat = f"{site.url}/chat"
    bodies: list[Any] = [[], {}, {"messages": []}, {"messages": ["hi"]}, {"messages": [{"role": "user", "content": 1}]}]
    for body in bodies:
        response = site.client.post(chat, json=body)
        assert (response.status_code, response.json()["error"]["message"][:4]) == (400, "send")
    assert site.client.post(chat, content=b"{", headers={"Content-Type": "application/json"}).is_client_error
    # Requests of another site's page: by EventSource, and by a form, which cannot set headers.
    assert site.client.get(chat, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    form = {"Content-Type": "text/plain"}
    messages = json.dumps({"messages": [{"role": "user", "content": "spend"}]})
    assert site.client.post(chat, content=messages, headers=form).status_code in (403, 415)
    assert upstream.request_count == 0


def test_a_head_request_asks_nothing(site: Site, upstream: ControlledUpstream) -> None:
    assert site.client.head(f"{site.url}/chat", params={"prompt": "spend"}).status_code == 200
    assert upstream.request_count == 0


def test_unreachable_upstream_is_a_bad_gateway(closed_port: int, tmp_path: Path) -> None:
    variables = {"OPENAI_BASE_URL": f"http://127.0.0.1:{closed_port}/v1"}
    with reserved_port() as port, serving("flask", port, tmp_path, **variables) as (site, program):
        response = site.client.get(f"{site.url}/chat", params={"prompt": "hello"})
        assert (response.status_code, response.json()) == (
            502,
            {"error": {"message": "The upstream cannot be reached."}},
        )
        assert site.counts().next(30) == {"open": 0, "answered": 0, "stopped": 0, "failed": 1}
        assert "ConnectError" in program.output
        assert "Traceback" not in program.output


def test_flask_chat_prints_its_url_and_ends_quietly(upstream: ControlledUpstream) -> None:
    upstream.reset()
    assert documented("OPENAI_API_KEY=... python -m examples.flask_chat").words == FLASK_CHAT[:-1]
    variables = {"OPENAI_API_KEY": "a-key", "OPENAI_BASE_URL": upstream.base_url, "OPENAI_MODEL": "a-model"}
    with running([*FLASK_CHAT, "0"], ROOT, PYTHONWARNINGS="error", **variables) as program:
        url = program.wait_for_output(rf"The page is at ({LISTENS})/\n")[1]
        program.wait_for_output(rf"Requests go to a-model at {upstream.base_url}\. Ctrl\+C ends it\.\n")
        events = request_sse(f"{url}/chat", params={"prompt": "hello"}).events
        response = upstream.response()
        assert response.request.headers["authorization"] == "Bearer a-key"
        assert response.request.json()["model"] == "a-model"
        response.send_text("Hi")
        assert events.next(30) == {"text": "Hi"}
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == 0
        response.request.wait_aborted()
        assert "a-key" not in program.output
        assert "Traceback" not in program.output
        events.close()


def test_flask_chat_starts_its_own_upstream() -> None:
    with running([*FLASK_CHAT, "0"], PYTHONWARNINGS="error") as program:
        url = program.wait_for_output(LISTENS)[0]
        program.wait_for_output(r"Requests go to a scripted upstream inside this program\.")
        words = [item["text"] for item in request_sse(f"{url}/chat", params={"prompt": "Hello, you"}).events]
        assert "".join(words).startswith("You said: \N{LEFT DOUBLE QUOTATION MARK}Hello, you")
        assert "Traceback" not in program.output


def scripted(server: SSEServer, prompt: str, last_event_id: str = "", **options: Any) -> EventStream[Any]:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    data = {"messages": [{"role": "user", "content": prompt}], "stream": True}
    return request_sse(server.url, headers, data, require_done=True, **options).events


def test_the_scripted_upstream_shows_every_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.flask_chat.scripted._PACE", 0)
    stop, long, silent, broken, failing, refusing = (prompt["prompt"] for prompt in PROMPTS)
    with SSEServer(answers) as server:
        for prompt in (stop, long, "{braces} and anything else"):
            events = scripted(server, prompt)
            assert len(list(events)) > 20
            assert events.outcome == "done"
        with pytest.raises(StreamTimeoutError):
            next(scripted(server, silent, timeout={"idle": 0.05}))
        with pytest.raises(TruncatedStreamError):
            list(scripted(server, broken))
        with pytest.raises(UpstreamError, match="run out of words"):
            list(scripted(server, failing))
        with pytest.raises(StatusError) as refused:
            scripted(server, refusing).raise_for_status()
        assert refused.value.status == 429


def test_scripted_upstream_continues_after_any_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.flask_chat.scripted._PACE", 0)
    prompt = PROMPTS[0]["prompt"]
    with SSEServer(answers) as server:
        whole = list(scripted(server, prompt))
        for seen in (1, 7, len(whole) - 1, len(whole)):
            assert list(scripted(server, prompt, str(seen))) == whole[seen:]
        assert list(scripted(server, prompt, "no id of its")) == whole


NGINX_COMMAND = documented("""nginx -p /tmp/nginx -c "$PWD/examples/nginx.conf" -g 'daemon off;'""")
# The command before makes it.
PREFIX = "/tmp/nginx"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """nginx with examples/nginx.conf on free ports: its URL, and the port of the application."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    configuration = (ROOT / "examples/nginx.conf").read_text("utf-8")
    with reserved_port() as port, reserved_port() as application:
        for configured, actual in {"127.0.0.1:8080": port, "127.0.0.1:8000": application}.items():
            assert f"{configured};" in configuration
            configuration = configuration.replace(f"{configured};", f"127.0.0.1:{actual};")
        path = tmp_path / "nginx.conf"
        path.write_text(configuration, "utf-8")
        assert documented("mkdir -p /tmp/nginx").words[-1] == PREFIX
        made = {PREFIX: str(tmp_path), "$PWD/examples/nginx.conf": str(path)}
        command = [NGINX, *(made.get(word, word) for word in NGINX_COMMAND.words[1:])]
        check = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=250, check=False)
        assert check.returncode == 0, check.stderr
        assert "[warn]" not in check.stderr
        with running(command, tmp_path) as program:
            url = f"http://127.0.0.1:{port}"
            program.wait_until_serving(url)
            yield url, application


@pytest.mark.nginx
def test_nginx_streams_and_forwards_the_disconnect(
    nginx: tuple[str, int], upstream: ControlledUpstream, tmp_path: Path
) -> None:
    upstream.reset()
    url, application = nginx
    with (
        serving("flask behind nginx", application, tmp_path, OPENAI_BASE_URL=upstream.base_url) as (_, program),
        httpx.Client() as client,
    ):
        site = Site("nginx", url, client)
        events = site.ask("count")
        response = upstream.response()
        for text in ("one", "two"):
            response.send_text(text)
            assert events.next(30) == {"text": text}
        events.close()
        response.request.wait_aborted()
        events = site.get("live long")
        upstream.response(2).send_text("I will")
        assert events.next(30) == {"text": "I will"}
        program.kill()
        # The stream does not look complete.
        with pytest.raises(TruncatedStreamError):
            events.next(30)
        assert upstream.request_count == 2
