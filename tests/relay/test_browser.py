"""The page of examples/flask_chat in Chromium, and a relay that a browser reads by EventSource and by npm's module.

The module with which the page reads is tested in test_browser_module.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flask
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from sseqbridge import ServerSentEvent, relay, request_sse
from sseqbridge.testing import SSEServer, comment, raw, respond, send, silence
from tests.browser_support import (
    FLASK_CHAT,
    ControlledResponse,
    ControlledUpstream,
    Page,
    chromium,
    npm_directory,
    running,
)
from tests.local_servers import under_werkzeug
from tests.support import reserved_port, until

pytestmark = [pytest.mark.browser, pytest.mark.server]

WAYS = ["fetch", "eventsource"]


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    """One browser for all tests; each test has a page of its own."""
    with chromium(keeps_left_pages=True) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def upstream_and_url() -> Iterator[tuple[ControlledUpstream, str]]:
    """An upstream, and the URL of the page."""
    with ControlledUpstream() as upstream, running([*FLASK_CHAT, "0"], OPENAI_BASE_URL=upstream.base_url) as program:
        yield upstream, program.wait_for_output(r"http://\S+:\d+/")[0]


@pytest.fixture
def upstream(upstream_and_url: tuple[ControlledUpstream, str]) -> ControlledUpstream:
    """The upstream of the page."""
    upstream, _ = upstream_and_url
    upstream.reset()
    return upstream


@pytest.fixture
def url(upstream_and_url: tuple[ControlledUpstream, str]) -> str:
    return upstream_and_url[1]


@pytest.fixture(params=WAYS)
def page(
    request: pytest.FixtureRequest, chrome: webdriver.Chrome, upstream: ControlledUpstream, url: str
) -> Iterator[Page]:
    """A new page, once for each way to read a stream."""
    yield Page(chrome, url, request.param)
    # Open requests are aborted, so that no test sees those of another.
    chrome.get("about:blank")


@pytest.fixture
def one_page(chrome: webdriver.Chrome, upstream: ControlledUpstream, url: str) -> Iterator[Page]:
    """The page, for tests that are independent of the transport."""
    yield Page(chrome, url)
    chrome.get("about:blank")


def test_answer_is_shown_incrementally(page: Page, upstream: ControlledUpstream) -> None:
    page.ask("Count")
    page.wait_for_answer("", "waiting")
    response = upstream.response()
    response.send_text("one, ")
    page.wait_for_answer("one, ", "streaming")
    response.send_text("two,\n", "  <b>drei</b> \N{SNOWMAN}")
    page.wait_for_answer("one, two,\n  <b>drei</b> \N{SNOWMAN}", "streaming")
    response.end()
    page.wait_for_answer("one, two,\n  <b>drei</b> \N{SNOWMAN}", "done")
    assert page.error == ""
    assert page.find(".question .text").text == "Count"
    assert upstream.response().request.json()["messages"] == [{"role": "user", "content": "Count"}]


def test_stop_aborts_a_silent_upstream(page: Page, upstream: ControlledUpstream) -> None:
    page.ask("Think")
    response = upstream.response()
    response.send_text("Hm")
    page.wait_for_answer("Hm", "streaming")
    assert not response.request.aborted.is_set()
    page.stop()
    page.wait_for_answer("Hm", "stopped")
    response.request.wait_aborted()
    assert upstream.request_count == 1
    assert page.error == ""


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        pytest.param(
            lambda response: response.send({"error": {"message": "the model has run out of words"}}),
            "The model has run out of words.",
            id="error event",
        ),
        pytest.param(ControlledResponse.cut, "The upstream's stream was cut off.", id="cut off"),
    ],
)
def test_failure_of_the_upstream_is_shown(
    page: Page, upstream: ControlledUpstream, fail: Callable[[ControlledResponse], None], error: str
) -> None:
    page.ask("Fail")
    response = upstream.response()
    response.send_text("So far ")
    fail(response)
    page.wait_for_answer("So far ", "failed")
    assert page.error == error
    assert page.find(".answer .error").aria_role == "alert"
    assert upstream.request_count == 1


def test_refusal_is_shown(page: Page, upstream: ControlledUpstream, request: pytest.FixtureRequest) -> None:
    refusal = {"error": {"message": "Slow down, please."}}
    head = respond(429, framing="length", content_type="application/json")
    upstream.script = [head, raw(json.dumps(refusal).encode())]
    page.ask("Refuse")
    page.wait_for_answer("", "failed")
    by_eventsource = "eventsource" in request.node.name
    # EventSource hides the answer's status.
    message = "The upstream refused the request: 429 Too Many Requests."
    assert page.error == ("The server refused to answer." if by_eventsource else message)
    upstream.script = None
    page.find(".error button").click()
    response = upstream.response(2)
    response.send_text("All right")
    response.end()
    page.wait_for_answer("All right", "done")


def test_closing_the_tab_aborts_the_upstream(
    page: Page, upstream: ControlledUpstream, chrome: webdriver.Chrome
) -> None:
    way = page.find("input:checked").get_attribute("value") or ""
    first = chrome.current_window_handle
    chrome.switch_to.new_window("tab")
    tab = Page(chrome, page.url, way)
    tab.ask("Think")
    response = upstream.response()
    response.send_text("Hm")
    tab.wait_for_answer("Hm", "streaming")
    chrome.close()
    response.request.wait_aborted()
    chrome.switch_to.window(first)
    assert upstream.request_count == 1


def test_answer_continues_while_the_tab_is_hidden(
    page: Page, upstream: ControlledUpstream, chrome: webdriver.Chrome
) -> None:
    page.ask("Count")
    response = upstream.response()
    response.send_text("one ")
    page.wait_for_answer("one ", "streaming")
    chrome.minimize_window()
    until(lambda: page.run("return document.hidden"))
    response.send_text("two")
    page.wait_for_answer("one two", "streaming")
    chrome.set_window_size(1280, 900)
    until(lambda: not page.run("return document.hidden"))
    response.end()
    page.wait_for_answer("one two", "done")
    # The panel had closed its stream, and has reconnected.
    until(lambda: page.count("open") == 0)
    assert upstream.request_count == 1


def test_leaving_the_page_for_another_aborts_the_upstream(
    one_page: Page, upstream: ControlledUpstream, chrome: webdriver.Chrome
) -> None:
    one_page.ask("Think")
    response = upstream.response()
    response.send_text("Hm")
    one_page.wait_for_answer("Hm", "streaming")
    chrome.get("about:blank")
    response.request.wait_aborted()
    # The browser has kept the page in its cache.
    chrome.back()
    until(lambda: one_page.count("open") == 0)
    assert (one_page.answer, one_page.state) == ("Hm", "stopped")


def test_panel_counts_open_and_ended_streams(one_page: Page, upstream: ControlledUpstream) -> None:
    page = one_page
    answered, stopped, failed = (page.count(name) or 0 for name in ("answered", "stopped", "failed"))
    page.ask("one")
    response = upstream.response()
    until(lambda: page.count("open") == 1)
    with request_sse(f"{page.url}chat", params={"prompt": "two"}):
        until(lambda: page.count("open") == 2)
    until(lambda: page.count("open") == 1)
    assert page.count("stopped") == stopped + 1
    response.end()
    until(lambda: page.count("open") == 0)
    assert page.count("answered") == answered + 1
    page.ask("three")
    upstream.response(3).cut()
    until(lambda: page.count("failed") == failed + 1)
    assert (page.count("open"), page.count("answered"), page.count("stopped")) == (0, answered + 1, stopped + 1)


def test_page_is_usable_by_keyboard(one_page: Page, upstream: ControlledUpstream, chrome: webdriver.Chrome) -> None:
    page = one_page
    prompt = page.find("#prompt")
    assert chrome.switch_to.active_element == prompt
    prompt.send_keys("two", Keys.SHIFT + Keys.ENTER + Keys.NULL, "lines", Keys.ENTER)
    response = upstream.response()
    response.send_text("yes")
    page.wait_for_answer("yes", "streaming")
    assert response.request.json()["messages"][-1]["content"] == "two\nlines"
    chrome.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.wait_for_answer("yes", "stopped")
    response.request.wait_aborted()
    assert chrome.switch_to.active_element == prompt
    assert prompt.get_attribute("value") == ""


def test_post_contains_the_whole_conversation(one_page: Page, upstream: ControlledUpstream) -> None:
    for number, (question, reply) in enumerate([("My name is Ada", "Hello!"), ("What is it?", "Ada")], 1):
        one_page.ask(question)
        upstream.response(number).send_text(reply)
        upstream.response(number).end()
        one_page.wait_for_answer(reply, "done")
    assert upstream.response(2).request.json()["messages"] == [
        {"role": "user", "content": "My name is Ada"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "What is it?"},
    ]


def test_elements_have_accessible_names_and_fit(
    one_page: Page, upstream: ControlledUpstream, chrome: webdriver.Chrome
) -> None:
    page = one_page
    page.ask("wide" * 40)
    response = upstream.response()
    response.send_text("x" * 400)
    page.wait_for_answer("x" * 400, "streaming")
    controls = chrome.find_elements(By.CSS_SELECTOR, "button, input, textarea, [role]")
    assert [control.get_attribute("outerHTML") for control in controls if not is_named(control)] == []
    assert page.find("#log").aria_role == "log"
    assert page.find(".answer").get_attribute("aria-busy") == "true"
    for width in (320, 600, 1280):
        size = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": False}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert page.run("return document.documentElement.scrollWidth") <= width
    chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def is_named(element: WebElement) -> object:
    return (
        bool(element.accessible_name) or element.aria_role in ("status", "log", "alert") or not element.is_displayed()
    )


def test_page_loads_nothing_foreign_and_logs_no_error(
    one_page: Page, upstream: ControlledUpstream, chrome: webdriver.Chrome
) -> None:
    chrome.get_log("browser")  # type: ignore[no-untyped-call]
    chrome.refresh()
    page = Page(chrome, one_page.url)
    page.ask("Hello")
    upstream.response().send_text("Hi")
    upstream.response().end()
    page.wait_for_answer("Hi", "done")
    fetched = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [url for url in fetched if not url.startswith((page.url, "data:"))] == []
    assert f"{page.url}static/relay.js" in fetched
    assert chrome.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_a_prompt_is_not_posted_twice_when_the_server_dies(
    chrome: webdriver.Chrome, upstream: ControlledUpstream
) -> None:
    with running([*FLASK_CHAT, "0"], OPENAI_BASE_URL=upstream.base_url) as program:
        page = Page(chrome, program.wait_for_output(r"http://\S+:\d+/")[0])
        page.ask("Live long")
        response = upstream.response()
        response.send_text("I will")
        page.wait_for_answer("I will", "streaming")
        program.kill()
        response.request.wait_aborted()
        page.wait_for_answer("I will", "failed")
        assert page.error == "The connection was lost before the answer was complete."
        page.find(".error button").click()
        until(lambda: page.error == "The server cannot be reached.")
        assert upstream.request_count == 1
    chrome.get("about:blank")


def test_eventsource_resumes_after_a_server_restart(chrome: webdriver.Chrome, upstream: ControlledUpstream) -> None:
    with reserved_port() as port:
        command = [*FLASK_CHAT, str(port)]
        with running(command, OPENAI_BASE_URL=upstream.base_url) as program:
            page = Page(chrome, program.wait_for_output(r"http://\S+:\d+/")[0], "eventsource")
            page.ask("Count")
            response = upstream.response()
            response.send_text("1 ", "2 ", "3 ")
            page.wait_for_answer("1 2 3 ", "streaming")
            program.kill()
            response.request.wait_aborted()
            page.wait_for_answer("1 2 3 ", "reconnecting")
        with running(command, OPENAI_BASE_URL=upstream.base_url):
            rest = upstream.response(2)
            assert rest.request.headers["last-event-id"] == "3"
            assert rest.request.json()["messages"] == [{"role": "user", "content": "Count"}]
            rest.send_text("4 ", "5")
            page.wait_for_answer("1 2 3 4 5", "streaming")
            # The panel has reconnected as well.
            until(lambda: page.count("open") == 1)
            rest.end()
            page.wait_for_answer("1 2 3 4 5", "done")
            until(lambda: page.count("answered") == 1)
            assert upstream.request_count == 2
            chrome.get("about:blank")


def test_eventsource_without_ids_does_not_reconnect(chrome: webdriver.Chrome, upstream: ControlledUpstream) -> None:
    with running([*FLASK_CHAT, "0"], OPENAI_BASE_URL=upstream.base_url) as program:
        page = Page(chrome, program.wait_for_output(r"http://\S+:\d+/")[0], "eventsource")
        page.ask("Count")
        upstream.response().send({"choices": [{"delta": {"content": "1"}}]})
        page.wait_for_answer("1", "streaming")
        program.kill()
        page.wait_for_answer("1", "failed")
        assert page.error == "The connection was lost before the answer was complete."
    chrome.get("about:blank")


class Relay:
    """An application that relays one upstream, and records its own requests. `url` is that of its server."""

    def __init__(self, upstream: SSEServer) -> None:
        self.url = ""
        self.requests: list[tuple[dict[str, str], Any]] = []
        modules = npm_directory() / "node_modules/@microsoft/fetch-event-source/lib/esm"
        self.app = flask.Flask(__name__)

        @self.app.get("/")
        def page() -> str:
            return "<!doctype html><title>relay</title>"

        @self.app.get("/npm/<name>")
        def module(name: str) -> flask.Response:
            return flask.send_from_directory(modules, Path(name).with_suffix(".js"))

        @self.app.route("/relay", methods=["GET", "POST"])
        def relayed() -> flask.Response:
            headers = {name.lower(): value for name, value in flask.request.headers.items()}
            self.requests.append((headers, flask.request.get_json(silent=True)))
            stream = request_sse(upstream.url, decode="event", done=None)
            return relay.flask.stream_response(stream, heartbeat=0.05)


@contextmanager
def relaying(upstream: SSEServer) -> Iterator[Relay]:
    relaying = Relay(upstream)
    with under_werkzeug(relaying.app, joins_threads=True) as relaying.url:
        yield relaying


EVENTS = [
    ServerSentEvent(data='{"n": 1}', id="a"),
    ServerSentEvent("note", "two\nlines, \N{SNOWMAN}", "b"),
    ServerSentEvent(data=" blank before", id="b"),
]

FETCH_EVENT_SOURCE = """
window.seen = []; window.ended = "";
window.controller = new AbortController();
const { fetchEventSource } = await import("/npm/index");
fetchEventSource("/relay", {
    method: "POST",
    headers: { Authorization: "Bearer of-the-page", "Content-Type": "application/json" },
    body: JSON.stringify({ question: "\\u2603?" }),
    signal: window.controller.signal,
    openWhenHidden: true,
    onmessage: ({ event, data, id }) => window.seen.push([event, data, id]),
    onerror: (error) => { throw error; },
}).then(() => (window.ended = "resolved"), (error) => (window.ended = String(error)));
"""

EVENTSOURCE = """
window.seen = [];
window.source = new EventSource("/relay");
const see = ({ type, data, lastEventId }) => window.seen.push([type, data, lastEventId]);
window.source.onmessage = see;
window.source.addEventListener("note", see);
"""


def test_fetch_event_source_posts_with_headers_and_gets_the_events(chrome: webdriver.Chrome) -> None:
    with SSEServer([*map(encoded, EVENTS), comment("still here"), silence()]) as upstream, relaying(upstream) as served:
        chrome.get(served.url)
        chrome.execute_script(FETCH_EVENT_SOURCE)
        # It delivers comments, such as heartbeats, as messages without data.
        until(lambda: len(seen(chrome)) == 3)
        assert seen(chrome) == [
            ["", '{"n": 1}', "a"],
            ["note", "two\nlines, \N{SNOWMAN}", "b"],
            ["", " blank before", "b"],
        ]
        headers, body = served.requests[0]
        assert headers["authorization"] == "Bearer of-the-page"
        assert headers["accept"] == "text/event-stream"
        assert body == {"question": "\N{SNOWMAN}?"}
        received = upstream.requests[0]
        assert not received.aborted.is_set()
        chrome.execute_script("window.controller.abort()")
        received.wait_aborted()
        assert chrome.execute_script("return window.ended") == "resolved"
        assert len(served.requests) == len(upstream.requests) == 1
        chrome.get("about:blank")


def test_eventsource_gets_the_events(chrome: webdriver.Chrome) -> None:
    with SSEServer([*map(encoded, EVENTS), comment("still here"), silence()]) as upstream, relaying(upstream) as served:
        chrome.get(served.url)
        chrome.execute_script(EVENTSOURCE)
        until(lambda: len(seen(chrome)) == 3)
        assert seen(chrome) == [
            ["message", '{"n": 1}', "a"],
            ["note", "two\nlines, \N{SNOWMAN}", "b"],
            ["message", " blank before", "b"],
        ]
        chrome.execute_script("window.source.close()")
        upstream.requests[0].wait_aborted()
        chrome.get("about:blank")


def encoded(event: ServerSentEvent) -> Any:
    return send(event.data, None if event.event == "message" else event.event, event.id)


def seen(chrome: webdriver.Chrome) -> list[list[str]]:
    """Return the events in window.seen, except those without data."""
    events: list[list[str]] = chrome.execute_script("return window.seen")
    return [event for event in events if event[1]]
