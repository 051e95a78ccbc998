"""The JavaScript of the guides, in Chromium, with relays that Flask serves. (Excerpts run with their pages.)"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import flask
import pytest
from selenium import webdriver

from sseqbridge import relay, request_sse
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import SSEServer, comment, cut, hold, respond, send, silence
from tests.browser_support import chromium
from tests.examples.guides import SCRIPTS
from tests.local_servers import under_werkzeug
from tests.support import ROOT, until

pytestmark = pytest.mark.browser

BLOCKS = SCRIPTS["examples/browser.md"]
# In a script of the browser's driver, an import is an expression.
IMPORT = 'const { readByEventSource, readByFetch, RelayError } = await import("/relay.js");'
FUNCTIONS = """
const shown = (window.shown = window.shown ?? []);
const show = (item) => shown.push(item);
const clear = () => shown.splice(0);
const showEnd = (outcome) => shown.push(outcome);
const showError = (message) => shown.push(message);
"""


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    with chromium() as chrome:
        yield chrome


@contextmanager
def serving(app: flask.Flask) -> Iterator[str]:
    module = ROOT / "sseqbridge/relay/browser/relay.js"
    app.add_url_rule("/", "page", lambda: "<!doctype html><title>guide</title>")
    app.add_url_rule("/relay.js", "module", lambda: flask.send_file(module, "text/javascript"))
    with under_werkzeug(app, joins_threads=True) as url:
        yield f"{url}/"


def script_of(block: str) -> str:
    """Return a block of the guide as a script of the driver, which has no static import."""
    assert "import(" not in block
    return IMPORT + FUNCTIONS + re.sub(r"^import .*\n", "", block, flags=re.M)


def test_every_block_is_run() -> None:
    assert {name: len(blocks) for name, blocks in SCRIPTS.items()} == {
        "examples/browser.md": 4,
        "examples/celery.md": 1,
        "examples/fastapi-chat.md": 1,
        "examples/sdks.md": 1,
    }


def test_reading_by_fetch(chrome: webdriver.Chrome) -> None:
    app = flask.Flask(__name__)
    received: list[Any] = []

    @app.post("/chat")
    def chat() -> flask.Response:
        received.append(flask.request.json)
        return relay.flask.stream_response(request_sse(upstream.url, check_content_type=False))

    with SSEServer([send({"n": 1}), send("[DONE]")]) as upstream, serving(app) as url:
        chrome.get(url)
        script = f'const question = "why";{script_of(BLOCKS[0])}; return shown;'
        assert chrome.execute_script(script) == [{"n": 1}, "done"]
        assert received == [{"question": "why"}]
        upstream.play([send({"n": 1})])
        assert chrome.execute_script(script.replace("why", "again")) == [
            {"n": 1},
            "done",
            {"n": 1},
            "The connection was lost before the answer was complete.",
        ]
        chrome.get("about:blank")


READ_ANSWER = """
const got = [];
try {
  await readAnswer("/chat", { method: "POST" }, ({ event, data }) => got.push([event, data]));
} catch (error) {
  got.push(error.message);
}
return got;
"""


def test_reader_to_copy(chrome: webdriver.Chrome) -> None:
    app = flask.Flask(__name__)

    @app.post("/chat")
    def chat() -> flask.Response:
        if ends_early:
            return relay.flask.stream_response(iter([{"n": 1}]))
        return relay.flask.stream_response(request_sse(upstream.url, decode="event"), early=False)

    ends_early = False
    first = [send("one\ntwo  ö"), comment("heartbeat"), send(" 3", event="tool")]
    events = [["message", "one\ntwo  ö"], ["tool", " 3"]]
    with SSEServer([*first, send("[DONE]")]) as upstream, serving(app) as url:
        chrome.get(url)
        script = BLOCKS[3] + READ_ANSWER
        assert chrome.execute_script(script) == events
        upstream.play([*first, cut()])
        assert chrome.execute_script(script) == [*events, "the upstream's stream was cut off"]
        # An iterable has no last event by itself.
        ends_early = True
        assert chrome.execute_script(script) == [["message", '{"n":1}'], "the answer was cut off"]
        ends_early = False
        upstream.play([respond(503)])
        assert chrome.execute_script(script) == ["the server answered 503"]
        chrome.get("about:blank")


def test_post_that_is_sent_again_asks_once(chrome: webdriver.Chrome) -> None:
    app = flask.Flask(__name__)
    received: list[str] = []
    steps = [send({"n": 1}), hold(), send({"n": 2}), send("[DONE]")]

    @app.post("/answers/<key>")
    def ask(key: str) -> flask.Response:
        received.append(key)
        last_event_id = flask.request.headers.get("Last-Event-ID")
        stream = log.open(key, partial(request_sse, upstream.url), last_event_id=last_event_id)
        return relay.flask.stream_response(stream)

    script = f'const question = "why";{script_of(BLOCKS[1])}'
    with MemoryLog() as log, SSEServer(steps) as upstream, serving(app) as url:
        chrome.get(url)
        chrome.execute_script(f"(async () => {{{script}}})();")
        until(lambda: chrome.execute_script("return window.shown") == [{"n": 1}])
        relay.end_all()
        until(lambda: len(received) == 2)
        upstream.release()
        until(lambda: chrome.execute_script("return window.shown") == [{"n": 1}, {"n": 2}, "done"])
        assert received[0] == received[1]
        assert len(upstream.requests) == 1
        chrome.get("about:blank")


def test_going_on_after_a_reload(chrome: webdriver.Chrome) -> None:
    app = flask.Flask(__name__)
    go_on = threading.Event()
    steps = [send({"text": "one "}), hold(go_on), send({"text": "two"}), send("[DONE]")]
    script = f'const key = "secret";{script_of(BLOCKS[2])}; return [answer, kept.text];'

    @app.get("/answers/<key>")
    def answer(key: str) -> flask.Response:
        last_event_id = flask.request.headers.get("Last-Event-ID")
        stream = log.open(key, lambda: request_sse(upstream.url), last_event_id=last_event_id)
        return relay.flask.stream_response(stream)

    with MemoryLog() as log, SSEServer(steps) as upstream, serving(app) as url:
        chrome.get(url)
        chrome.execute_script(f"(async () => {{{script}}})();")
        until(lambda: "one" in (chrome.execute_script("return sessionStorage.getItem('answer')") or ""))
        chrome.refresh()
        go_on.set()
        assert chrome.execute_script(script) == ["done", "one two"]
        assert len(upstream.requests) == 1
        chrome.get("about:blank")


def test_page_of_starlette(chrome: webdriver.Chrome) -> None:
    app = flask.Flask(__name__)
    received: list[Any] = []

    @app.post("/chat")
    def chat() -> flask.Response:
        received.append(flask.request.json)
        return relay.flask.stream_response(partial(request_sse, upstream.url))

    [block] = SCRIPTS["examples/fastapi-chat.md"]
    begin = 'document.body.innerHTML = "<button id=stop></button>"; const question = "why";'
    script = f"{begin}{script_of(block)}; return shown;"
    deltas = [[], [{"delta": {"role": "assistant"}}], [{"delta": {"content": "Hi"}}]]
    whole = [*(send({"choices": choices}) for choices in deltas), send("[DONE]")]
    with SSEServer(whole) as upstream, serving(app) as url:
        chrome.get(url)
        assert chrome.execute_script(script) == ["", "Hi", "done"]
        assert received == [{"messages": [{"role": "user", "content": "why"}]}]
        upstream.play([respond(401, json={"error": {"message": "wrong key"}})])
        chrome.get(url)
        [message] = chrome.execute_script(script)
        assert "wrong key" not in message
        assert message.endswith(".")
        upstream.play([*whole[:-1], silence()])
        chrome.get(url)
        press_stop = script.replace(
            "show(delta?.content", 'document.querySelector("#stop").click(), show(delta?.content'
        )
        assert chrome.execute_script(press_stop)[-1] == "stopped"
        chrome.get("about:blank")
        upstream.requests[-1].wait_aborted()


def test_page_of_an_sdk(chrome: webdriver.Chrome) -> None:
    app = flask.Flask(__name__)

    @app.get("/openai")
    def answer() -> flask.Response:
        return relay.flask.stream_response(iter([flask.request.args["prompt"], "a\nb"]), done="[DONE]")

    [block] = SCRIPTS["examples/sdks.md"]
    with serving(app) as url:
        chrome.get(url)
        script = f'const question = "Why & how?";{script_of(block)}; return shown;'
        assert chrome.execute_script(script) == ["Why & how?", "a\nb", "done"]
        chrome.get("about:blank")


def test_page_of_a_worker(chrome: webdriver.Chrome) -> None:
    app = flask.Flask(__name__)
    deltas = [[{"delta": {"content": "Hel"}}], [], [{"delta": {"content": "lo"}}]]

    @app.post("/ask")
    def ask() -> tuple[dict[str, str], int]:
        log.produce("the-key", lambda: request_sse(upstream.url, data=flask.request.json))
        return {"key": "the-key"}, 202

    @app.get("/answers/<key>")
    def answer(key: str) -> flask.Response:
        return relay.flask.stream_response(partial(log.open, key))

    [block] = SCRIPTS["examples/celery.md"]
    steps = [*(send({"choices": choices}) for choices in deltas), send("[DONE]")]
    with MemoryLog() as log, SSEServer(steps) as upstream, serving(app) as url:
        chrome.get(url)
        script = f'const question = "why";{script_of(block)}; return shown;'
        assert chrome.execute_script(script) == ["Hel", "lo", "done"]
        assert upstream.requests[0].json() == {"prompt": "why"}
        chrome.get("about:blank")
