"""The page of examples/flask_chat in Chromium, and a relay read by both ways in that browsers have.

Three ways, to be exact: the page's POST goes through @microsoft/fetch-event-source from npm, or through
its own stand-in for that.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import flask
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from werkzeug.serving import make_server

from sseqbridge import ServerSentEvent, relay, request_sse
from sseqbridge.testing import SSEServer, comment, raw, respond, send, silence
from tests.browser_support import FLASK_CHAT, Page, Puppet, chromium, npm_directory, reserved_port, running
from tests.support import until

pytestmark = [pytest.mark.browser, pytest.mark.server]

WAYS = ["npm", "stand-in", "eventsource"]


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    """One browser for all: a test has it in a page of its own."""
    with chromium() as chrome:
        yield chrome


@pytest.fixture(scope="module")
def all_of_them(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Puppet, dict[str, str]]]:
    """An upstream, and the URLs of the page: with npm's module, and without."""
    directories = {"npm": npm_directory(), "stand-in": tmp_path_factory.mktemp("without_npm")}
    with ExitStack() as stack:
        puppet = stack.enter_context(Puppet())
        programs = {
            name: stack.enter_context(running([*FLASK_CHAT, "0"], directory, OPENAI_BASE_URL=puppet.base_url))
            for name, directory in directories.items()
        }
        urls = {name: program.prints(r"http://\S+:\d+/")[0] for name, program in programs.items()}
        yield puppet, {**urls, "eventsource": urls["stand-in"]}


@pytest.fixture
def puppet(all_of_them: tuple[Puppet, dict[str, str]]) -> Puppet:
    """The upstream that the page asks."""
    puppet, _ = all_of_them
    puppet.reset()
    return puppet


@pytest.fixture
def urls(all_of_them: tuple[Puppet, dict[str, str]]) -> dict[str, str]:
    return all_of_them[1]


@pytest.fixture(params=WAYS)
def page(
    request: pytest.FixtureRequest, chrome: webdriver.Chrome, puppet: Puppet, urls: dict[str, str]
) -> Iterator[Page]:
    """The page, new, once for each way in."""
    page = Page(chrome, urls[request.param], "eventsource" if request.param == "eventsource" else "fetch")
    yield page
    # Open requests are aborted, so that no test sees those of another.
    chrome.get("about:blank")


@pytest.fixture
def one_page(chrome: webdriver.Chrome, puppet: Puppet, urls: dict[str, str]) -> Iterator[Page]:
    """The page, for tests that are independent of the transport."""
    yield Page(chrome, urls["npm"])
    chrome.get("about:blank")


def test_answer_is_shown_incrementally(page: Page, puppet: Puppet) -> None:
    page.ask("Count")
    page.shows("", "waiting")
    answer = puppet.answer()
    answer.say("one, ")
    page.shows("one, ", "streaming")
    answer.say("two,\n", "  <b>drei</b> \N{SNOWMAN}")
    page.shows("one, two,\n  <b>drei</b> \N{SNOWMAN}", "streaming")
    answer.end()
    page.shows("one, two,\n  <b>drei</b> \N{SNOWMAN}", "done")
    assert page.error == ""
    assert page.find(".question .text").text == "Count"
    assert puppet.answer().request.json()["messages"] == [{"role": "user", "content": "Count"}]


def test_stop_aborts_a_silent_upstream(page: Page, puppet: Puppet) -> None:
    page.ask("Think")
    answer = puppet.answer()
    answer.say("Hm")
    page.shows("Hm", "streaming")
    assert not answer.request.aborted.is_set()
    page.stop()
    page.shows("Hm", "stopped")
    answer.request.wait_aborted()
    assert puppet.asked == 1
    assert page.error == ""


def test_an_error_of_the_upstream_shows_as_one(page: Page, puppet: Puppet) -> None:
    page.ask("Fail")
    answer = puppet.answer()
    answer.say("So far ")
    answer.send({"error": {"message": "the model has run out of words"}})
    page.shows("So far ", "failed")
    assert page.error == "The model has run out of words."
    assert page.find(".answer .error").aria_role == "alert"


def test_an_upstream_that_breaks_off_shows_as_an_error(page: Page, puppet: Puppet) -> None:
    page.ask("Break")
    answer = puppet.answer()
    answer.say("Half of ")
    answer.cut()
    page.shows("Half of ", "failed")
    assert page.error == "The upstream's stream was cut off."
    assert puppet.asked == 1


def test_a_refusal_shows_as_an_error(page: Page, puppet: Puppet, request: pytest.FixtureRequest) -> None:
    refusal = {"error": {"message": "Slow down, please."}}
    puppet.script = [respond(429, framing="length", content_type="application/json"), raw(json.dumps(refusal).encode())]
    page.ask("Refuse")
    page.shows("", "failed")
    by_eventsource = "eventsource" in request.node.name
    # EventSource hides the answer's status.
    message = "the upstream refused the request: 429 Too Many Requests"
    assert page.error == ("The server refused to answer." if by_eventsource else message)
    puppet.script = None
    page.find(".error button").click()
    answer = puppet.answer(2)
    answer.say("All right")
    answer.end()
    page.shows("All right", "done")


def test_closing_the_tab_aborts_the_upstream(page: Page, puppet: Puppet, chrome: webdriver.Chrome) -> None:
    way = page.find("input:checked").get_attribute("value") or ""
    first = chrome.current_window_handle
    chrome.switch_to.new_window("tab")
    tab = Page(chrome, page.url, way)
    tab.ask("Think")
    answer = puppet.answer()
    answer.say("Hm")
    tab.shows("Hm", "streaming")
    chrome.close()
    answer.request.wait_aborted()
    chrome.switch_to.window(first)
    assert puppet.asked == 1


def test_answer_continues_while_the_tab_is_hidden(page: Page, puppet: Puppet, chrome: webdriver.Chrome) -> None:
    page.ask("Count")
    answer = puppet.answer()
    answer.say("one ")
    page.shows("one ", "streaming")
    chrome.minimize_window()
    until(lambda: page.run("return document.hidden"))
    answer.say("two")
    page.shows("one two", "streaming")
    chrome.set_window_size(1280, 900)
    until(lambda: not page.run("return document.hidden"))
    answer.end()
    page.shows("one two", "done")
    # The panel had hung up, and is back.
    until(lambda: page.count("open") == 0)
    assert puppet.asked == 1


def test_leaving_the_page_for_another_aborts_the_upstream(
    one_page: Page, puppet: Puppet, chrome: webdriver.Chrome
) -> None:
    one_page.ask("Think")
    answer = puppet.answer()
    answer.say("Hm")
    one_page.shows("Hm", "streaming")
    chrome.get("about:blank")
    answer.request.wait_aborted()
    # The browser has kept the page.
    chrome.back()
    until(lambda: one_page.count("open") == 0)
    assert (one_page.answer, one_page.state) == ("Hm", "stopped")


def test_panel_counts_open_and_ended_streams(one_page: Page, puppet: Puppet) -> None:
    page = one_page
    answered, stopped, failed = (page.count(name) or 0 for name in ("answered", "stopped", "failed"))
    page.ask("one")
    answer = puppet.answer()
    until(lambda: page.count("open") == 1)
    with request_sse(f"{page.url}chat", params={"prompt": "two"}):
        until(lambda: page.count("open") == 2)
    until(lambda: page.count("open") == 1)
    assert page.count("stopped") == stopped + 1
    answer.end()
    until(lambda: page.count("open") == 0)
    assert page.count("answered") == answered + 1
    page.ask("three")
    puppet.answer(3).cut()
    until(lambda: page.count("failed") == failed + 1)
    assert (page.count("open"), page.count("answered"), page.count("stopped")) == (0, answered + 1, stopped + 1)


def test_page_is_usable_by_keyboard(one_page: Page, puppet: Puppet, chrome: webdriver.Chrome) -> None:
    page = one_page
    prompt = page.find("#prompt")
    assert chrome.switch_to.active_element == prompt
    prompt.send_keys("two", Keys.SHIFT + Keys.ENTER + Keys.NULL, "lines", Keys.ENTER)
    answer = puppet.answer()
    answer.say("yes")
    page.shows("yes", "streaming")
    assert answer.request.json()["messages"][-1]["content"] == "two\nlines"
    chrome.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.shows("yes", "stopped")
    answer.request.wait_aborted()
    assert chrome.switch_to.active_element == prompt
    assert prompt.get_attribute("value") == ""


def test_post_contains_the_whole_conversation(one_page: Page, puppet: Puppet) -> None:
    for number, (question, reply) in enumerate([("My name is Ada", "Hello!"), ("What is it?", "Ada")], 1):
        one_page.ask(question)
        puppet.answer(number).say(reply)
        puppet.answer(number).end()
        one_page.shows(reply, "done")
    assert puppet.answer(2).request.json()["messages"] == [
        {"role": "user", "content": "My name is Ada"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "What is it?"},
    ]


def test_elements_have_accessible_names_and_fit(one_page: Page, puppet: Puppet, chrome: webdriver.Chrome) -> None:
    page = one_page
    page.ask("wide" * 40)
    answer = puppet.answer()
    answer.say("x" * 400)
    page.shows("x" * 400, "streaming")
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


def test_page_loads_nothing_foreign_and_logs_no_error(one_page: Page, puppet: Puppet, chrome: webdriver.Chrome) -> None:
    chrome.get_log("browser")  # type: ignore[no-untyped-call]
    chrome.refresh()
    page = Page(chrome, one_page.url)
    page.ask("Hello")
    puppet.answer().say("Hi")
    puppet.answer().end()
    page.shows("Hi", "done")
    fetched = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [url for url in fetched if not url.startswith((page.url, "data:"))] == []
    # That npm's is the one that was tested: the stand-in has one file.
    assert f"{page.url}fetch-event-source/parse" in fetched
    assert chrome.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_django_gets_its_csrf_token_in_a_header(chrome: webdriver.Chrome, puppet: Puppet) -> None:
    with reserved_port() as port:
        command = [sys.executable, "-m", "uvicorn", "--port", str(port), "examples.django_chat:asgi"]
        with running(command, npm_directory(), OPENAI_BASE_URL=puppet.base_url) as program:
            page = Page(chrome, program.prints(rf"http://127.0.0.1:{port}")[0] + "/")
            page.ask("Hello")
            answer = puppet.answer()
            answer.say("Hi")
            page.shows("Hi", "streaming")
            page.stop()
            answer.request.wait_aborted()
            chrome.delete_all_cookies()
            page.ask("Again")
            page.shows("", "failed")
            assert (page.error, puppet.asked) == ("The server answered with status 403.", 1)
            chrome.get("about:blank")


def test_a_prompt_is_not_posted_twice_when_the_server_dies(chrome: webdriver.Chrome, puppet: Puppet) -> None:
    with running([*FLASK_CHAT, "0"], npm_directory(), OPENAI_BASE_URL=puppet.base_url) as program:
        page = Page(chrome, program.prints(r"http://\S+:\d+/")[0])
        page.ask("Live long")
        answer = puppet.answer()
        answer.say("I will")
        page.shows("I will", "streaming")
        program.kill()
        answer.request.wait_aborted()
        page.shows("I will", "failed")
        assert page.error == "The connection was lost before the answer was complete."
        page.find(".error button").click()
        until(lambda: page.error == "The server cannot be reached.")
        assert puppet.asked == 1
    chrome.get("about:blank")


def test_eventsource_resumes_after_a_server_restart(chrome: webdriver.Chrome, puppet: Puppet) -> None:
    with reserved_port() as port:
        command = [*FLASK_CHAT, str(port)]
        with running(command, OPENAI_BASE_URL=puppet.base_url) as program:
            page = Page(chrome, program.prints(r"http://\S+:\d+/")[0], "eventsource")
            page.ask("Count")
            answer = puppet.answer()
            answer.say("1 ", "2 ", "3 ")
            page.shows("1 2 3 ", "streaming")
            program.kill()
            answer.request.wait_aborted()
            page.shows("1 2 3 ", "reconnecting")
        with running(command, OPENAI_BASE_URL=puppet.base_url):
            rest = puppet.answer(2)
            assert rest.request.headers["last-event-id"] == "3"
            assert rest.request.json()["messages"] == [{"role": "user", "content": "Count"}]
            rest.say("4 ", "5")
            page.shows("1 2 3 4 5", "streaming")
            # The panel is back as well.
            until(lambda: page.count("open") == 1)
            rest.end()
            page.shows("1 2 3 4 5", "done")
            until(lambda: page.count("answered") == 1)
            assert puppet.asked == 2
            chrome.get("about:blank")


def test_eventsource_without_ids_does_not_reconnect(chrome: webdriver.Chrome, puppet: Puppet) -> None:
    with running([*FLASK_CHAT, "0"], OPENAI_BASE_URL=puppet.base_url) as program:
        page = Page(chrome, program.prints(r"http://\S+:\d+/")[0], "eventsource")
        page.ask("Count")
        puppet.answer().send({"choices": [{"delta": {"content": "1"}}]})
        page.shows("1", "streaming")
        program.kill()
        page.shows("1", "failed")
        assert page.error == "The connection was lost before the answer was complete."
    chrome.get("about:blank")


# Each split of a body in two pieces, and the expected result.
CUT_IN_TWO = """
const { fetchEventSource } = await import("./fetch-event-source/index.js");
const bytes = new TextEncoder().encode(arguments[0]);
const outcomes = new Set();
for (let cut = 0; cut <= bytes.length; cut++) {
    const chunks = [bytes.slice(0, cut), bytes.slice(cut)].filter((chunk) => chunk.length);
    const pull = (body) => (chunks.length ? body.enqueue(chunks.shift()) : body.close());
    window.fetch = async () => new Response(new ReadableStream({ pull }));
    const messages = [];
    await fetchEventSource("", { onmessage: ({ event, id, data }) => messages.push([event, id, data]) });
    outcomes.add(JSON.stringify(messages));
}
return [...outcomes];
"""


def test_stand_in_parses_as_the_standard_requires(chrome: webdriver.Chrome, urls: dict[str, str]) -> None:
    chrome.get(urls["stand-in"])
    comment_and_line_ends = "\ufeffdata: a\r\n\r\n: c\n\nid: 1\rdata\rdata:b \N{SNOWMAN}\r\r"
    fields = "event: x\ndata:  c: d\n\nid\ndata:\n\ndata: lost\n"
    outcomes = chrome.execute_script(CUT_IN_TWO, comment_and_line_ends + fields)
    assert [json.loads(messages) for messages in outcomes] == [
        [["", "", "a"], ["", "1", "\nb \N{SNOWMAN}"], ["x", "1", " c: d"], ["", "", ""]]
    ]


class Relay:
    """A web server in this process that relays one upstream, and its requests."""

    def __init__(self, upstream: SSEServer) -> None:
        self.asked: list[tuple[dict[str, str], Any]] = []
        modules = npm_directory() / "node_modules/@microsoft/fetch-event-source/lib/esm"
        app = flask.Flask(__name__)

        @app.get("/")
        def page() -> str:
            return "<!doctype html><title>relay</title>"

        @app.get("/npm/<name>")
        def module(name: str) -> flask.Response:
            return flask.send_from_directory(modules, Path(name).with_suffix(".js"))

        @app.route("/relay", methods=["GET", "POST"])
        def relayed() -> flask.Response:
            headers = {name.lower(): value for name, value in flask.request.headers.items()}
            self.asked.append((headers, flask.request.get_json(silent=True)))
            stream = request_sse(upstream.url, decode="event", done=None)
            return relay.flask.stream_response(stream, heartbeat=0.05)

        self.server = make_server("127.0.0.1", 0, app, threaded=True)
        # So that closing it waits for them: no thread of this test is left to the next.
        self.server.daemon_threads = False  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.server.port}"


@contextmanager
def relaying(upstream: SSEServer) -> Iterator[Relay]:
    relaying = Relay(upstream)
    thread = threading.Thread(target=relaying.server.serve_forever)
    thread.start()
    try:
        yield relaying
    finally:
        relaying.server.shutdown()
        thread.join()
        relaying.server.server_close()


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
        # It takes comments, which the heartbeats are, for messages without data.
        until(lambda: len(seen(chrome)) == 3)
        assert seen(chrome) == [
            ["", '{"n": 1}', "a"],
            ["note", "two\nlines, \N{SNOWMAN}", "b"],
            ["", " blank before", "b"],
        ]
        headers, body = served.asked[0]
        assert headers["authorization"] == "Bearer of-the-page"
        assert headers["accept"] == "text/event-stream"
        assert body == {"question": "\N{SNOWMAN}?"}
        upstreams = upstream.requests[0]
        assert not upstreams.aborted.is_set()
        chrome.execute_script("window.controller.abort()")
        upstreams.wait_aborted()
        assert chrome.execute_script("return window.ended") == "resolved"
        assert len(served.asked) == len(upstream.requests) == 1
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
    """Return the events that a script has put into window.seen, but those without data."""
    events: list[list[str]] = chrome.execute_script("return window.seen")
    return [event for event in events if event[1]]
