"""sseqbridge/relay/browser/relay.js in Chromium: every way in which an answer ends, by fetch and by EventSource.

The relays are served by Flask in this process. Where a test needs other bytes than a relay sends, an SSEServer serves
the page too.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import flask
import pytest
from selenium import webdriver

from sseqbridge import SSEError, relay, request_sse
from sseqbridge.resume import Log, MemoryLog
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, comment, cut, hold, raw, reset, respond, send, silence
from tests.browser_support import chromium
from tests.local_servers import under_werkzeug
from tests.support import ROOT, until

pytestmark = pytest.mark.browser

MODULE = ROOT / "sseqbridge/relay/browser/relay.js"
PAGE = "<!doctype html><title>relay</title><link rel=icon href=data:,>"
DONE = send("[DONE]")
LOST = "The connection was lost before the answer was complete."

READ = """
const [way, url, options, script] = arguments;
const { readByFetch, readByEventSource, RelayError } = await import("/relay.js");
window.seen = [];
window.notes = [];
window.ended = null;
window.controller = new AbortController();
(way === "fetch" ? readByFetch : readByEventSource)(url, {
    signal: controller.signal,
    onEvent: ({ event, data, id }) => window.seen.push([event, data, id]),
    onLost: ({ kind }) => window.notes.push(`lost: ${kind}`),
    onBack: () => window.notes.push("back"),
    ...options,
    ...(script && eval(`(${script})`)),
}).then(
    (outcome) => (window.ended = { outcome }),
    (error) => {
        const { message, kind, type, status, retryAfter } = error;
        window.ended = error instanceof RelayError ? { kind, message, type, status, retryAfter } : { thrown: message };
    },
);
"""


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    with chromium() as chrome:
        yield chrome


class Reading:
    """An answer that the page reads by the module."""

    def __init__(self, chrome: webdriver.Chrome, way: str) -> None:
        self.chrome = chrome
        self.way = way

    def begin(self, url: str, path: str = "/chat", script: str = "", **options: Any) -> None:
        """Open the page at `url`, and read `path` with these options, and those in JavaScript."""
        if not self.chrome.current_url.startswith(url):
            self.chrome.get(url)
        self.chrome.execute_script(READ, self.way, path, options, script)

    def read(self, url: str, path: str = "/chat", script: str = "", **options: Any) -> dict[str, Any]:
        """Read an answer to its end. Returns the outcome, or what is known of the error."""
        self.begin(url, path, script, **options)
        return self.end

    @property
    def end(self) -> dict[str, Any]:
        until(lambda: self.chrome.execute_script("return window.ended"), 60)
        ended: dict[str, Any] = self.chrome.execute_script("return window.ended")
        return ended

    @property
    def seen(self) -> list[tuple[str, str, str]]:
        return [tuple(event) for event in self.chrome.execute_script("return window.seen")]

    @property
    def data(self) -> list[str]:
        return [data for _, data, _ in self.seen]

    @property
    def notes(self) -> list[str]:
        notes: list[str] = self.chrome.execute_script("return window.notes")
        return notes

    def stop(self) -> None:
        self.chrome.execute_script("window.controller.abort()")

    def failure(self, kind: str, message: str, type: str | None = None, **refusal: Any) -> dict[str, Any]:
        """Return the description of an error, in which EventSource hides a refusal's status."""
        if kind == "refused" and self.way == "eventsource":
            return self.failure("lost", "The server refused to answer.") | {"kind": kind}
        return {"kind": kind, "message": message, "type": type, "status": None, "retryAfter": None, **refusal}


@pytest.fixture(params=["fetch", "eventsource"])
def reading(request: pytest.FixtureRequest, chrome: webdriver.Chrome) -> Iterator[Reading]:
    yield Reading(chrome, request.param)
    chrome.get("about:blank")


@pytest.fixture
def by_fetch(chrome: webdriver.Chrome) -> Iterator[Reading]:
    yield Reading(chrome, "fetch")
    chrome.get("about:blank")


@contextmanager
def serving(chat: Callable[[], Any]) -> Iterator[str]:
    """Serve the page, and a view, in threads; the URL."""
    app = flask.Flask(__name__)
    app.add_url_rule("/", "page", lambda: PAGE)
    app.add_url_rule("/relay.js", "module", lambda: flask.send_file(MODULE, "text/javascript"))
    app.add_url_rule("/chat", "chat", chat, methods=["GET", "POST"])
    with under_werkzeug(app, joins_threads=True) as url:
        yield url


@contextmanager
def relaying(upstream: SSEServer, **options: Any) -> Iterator[str]:
    """Relay the upstream, by Flask; the URL."""
    with serving(lambda: relay.flask.stream_response(request_sse(upstream.url), **options)) as url:
        yield url


class Answers:
    """A script for SSEServer that serves the page and the module, and plays one answer after another."""

    def __init__(self, *answers: Sequence[Step]) -> None:
        self._answers = list(answers)
        self.requests: list[ReceivedRequest] = []

    def __call__(self, request: ReceivedRequest) -> Iterator[Step]:
        if request.path == "/":
            yield respond(framing="length", content_type="text/html")
            yield raw(PAGE.encode())
        elif request.path == "/relay.js":
            yield respond(framing="length", content_type="text/javascript")
            yield raw(MODULE.read_bytes())
        else:
            self.requests.append(request)
            yield from self._answers.pop(0)

    @property
    def last_event_ids(self) -> list[str]:
        return [request.headers.get("last-event-id", "") for request in self.requests]


@contextmanager
def playing(*answers: Sequence[Step]) -> Iterator[tuple[str, Answers]]:
    script = Answers(*answers)
    with SSEServer(script) as server:
        yield server.url, script


ITEMS = [
    send({"n": 1}, id="a"),
    comment("heartbeat"),
    send("ping", "ping"),
    send(["\N{SNOWMAN}"], "note", "b"),
    send({"n": 3}),
]


# Endings that a relay makes.


def test_answer_is_read_to_its_last_event(reading: Reading) -> None:
    with SSEServer([*ITEMS, DONE]) as upstream, relaying(upstream, heartbeat=0.05) as url:
        assert reading.read(url, events=["note"]) == {"outcome": "done"}
        assert reading.seen == [
            ("", '{"n": 1}', "a"),
            ("note", '["\\u2603"]', "b"),
            ("", '{"n": 3}', "b"),
        ]
        assert upstream.aborted_requests == 0


def test_own_last_event(reading: Reading) -> None:
    steps = [send({"n": 1}), send({"type": "message_stop"}, "message_stop")]
    script = '{ isLast: ({ event }) => event === "message_stop" }'
    with (
        SSEServer([*steps, silence()]) as upstream,
        serving(lambda: relay.flask.stream_response(request_sse(upstream.url, dialect="anthropic"))) as url,
    ):
        assert reading.read(url, script=script, events=["message_stop"]) == {"outcome": "done"}
        assert reading.data == ['{"n": 1}']


@pytest.mark.parametrize("is_mapped", [False, True])
def test_upstream_that_is_cut_off(reading: Reading, is_mapped: bool) -> None:
    options = {"map": lambda item: item} if is_mapped else {}
    with SSEServer([send({"n": 1}), cut()]) as upstream, relaying(upstream, **options) as url:
        expected = reading.failure("failed", "The upstream's stream was cut off.", "TruncatedStreamError")
        assert reading.read(url) == expected
        assert len(reading.data) == 1
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("is_mapped", [False, True])
@pytest.mark.parametrize(
    "error", [{"error": {"message": "the model is overloaded", "type": "overloaded"}}, {"error": "out of words"}]
)
def test_error_of_the_provider(reading: Reading, is_mapped: bool, error: dict[str, Any]) -> None:
    options = {"map": lambda item: item} if is_mapped else {}
    with SSEServer([send({"n": 1}), send(error)]) as upstream, relaying(upstream, **options) as url:
        ended = reading.read(url)
        reported = error["error"]
        message = reported["message"] if isinstance(reported, dict) else reported
        assert (ended["kind"], ended["message"]) == ("failed", f"{message[0].upper()}{message[1:]}.")
        assert len(reading.data) == 1


def test_event_that_only_looks_like_an_error(reading: Reading) -> None:
    items = [
        {"n": 1, "error": {"message": None}},
        {"n": 2, "error": ""},
        {"n": 3, "error": False},
        {"n": 4, "jsonrpc": "2.0", "error": {"code": 1}},
    ]
    with SSEServer([*map(send, items), send("[DONE] ")]) as upstream, relaying(upstream) as url:
        assert reading.read(url) == {"outcome": "done"}
        assert [json.loads(data) for data in reading.data] == items


def test_error_of_the_application(reading: Reading) -> None:
    def items() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        raise ZeroDivisionError

    with serving(lambda: relay.flask.stream_response(items())) as url:
        message = "The server failed while it made the stream."
        assert reading.read(url) == reading.failure("failed", message, "ServerError")
        assert reading.data == ['{"n":1}']


def test_error_in_the_applications_own_words(reading: Reading) -> None:
    with (
        SSEServer([send({"n": 1}), cut()]) as upstream,
        relaying(upstream, error=lambda error: "please ask again") as url,
    ):
        assert reading.read(url) == reading.failure("failed", "Please ask again.")


def test_connection_that_the_relay_breaks_off(by_fetch: Reading) -> None:
    def fail(error: BaseException) -> Any:
        raise error

    with SSEServer([send({"n": 1}), cut()]) as upstream, relaying(upstream, error=fail) as url:
        assert by_fetch.read(url) == by_fetch.failure("lost", LOST)


@pytest.mark.parametrize("status", [401, 429, 503])
def test_refusal(reading: Reading, status: int) -> None:
    headers = {"Retry-After": "7"}
    answer = [respond(status, headers, content_type="application/json"), raw(b'{"error": {"message": "secret"}}')]
    with SSEServer(answer) as upstream, relaying(upstream) as url:
        ended = reading.read(url)
        shown = 502 if status == 401 else status
        expected = reading.failure("refused", "", "upstream_error", status=shown, retryAfter=7000)
        assert ended == {**expected, "message": ended["message"]}
        assert "secret" not in ended["message"]
        assert (str(status) in ended["message"]) == (reading.way == "fetch")
        assert reading.seen == []


def test_abort_stops_the_upstream_and_delivers_nothing_more(reading: Reading) -> None:
    with SSEServer([send({"n": 1}), silence()]) as upstream, relaying(upstream) as url:
        reading.begin(url)
        until(lambda: reading.seen)
        assert not upstream.requests[0].aborted.is_set()
        reading.stop()
        assert reading.end == {"outcome": "stopped"}
        upstream.requests[0].wait_aborted()


def test_abort_inside_of_on_event(reading: Reading) -> None:
    script = "{ onEvent: ({ data }) => { window.seen.push(['', data, '']); window.controller.abort(); } }"
    with SSEServer([send({"n": 1}), send({"n": 2}), DONE]) as upstream, relaying(upstream) as url:
        assert reading.read(url, script=script) == {"outcome": "stopped"}
        assert reading.data == ['{"n": 1}']


def test_abort_before_the_request(reading: Reading) -> None:
    with SSEServer([DONE]) as upstream, relaying(upstream) as url:
        assert reading.read(url, script="{ signal: AbortSignal.abort() }") == {"outcome": "stopped"}
        assert upstream.requests == []


def test_exception_of_on_event_ends_the_reading(reading: Reading) -> None:
    with SSEServer([send({"n": 1}), silence()]) as upstream, relaying(upstream) as url:
        script = "{ onEvent() { throw new Error('of the page'); } }"
        assert reading.read(url, script=script) == {"thrown": "of the page"}
        upstream.requests[0].wait_aborted()


def test_post_with_headers_and_a_body(by_fetch: Reading) -> None:
    received: list[tuple[str, Any, str | None, str | None]] = []

    def chat() -> Any:
        headers = flask.request.headers
        received.append((flask.request.method, flask.request.json, headers.get("Accept"), headers.get("X-Own")))
        return relay.flask.stream_response(["one"], done="[DONE]")

    with serving(chat) as url:
        headers = {"Content-Type": "application/json", "X-Own": "yes"}
        ended = by_fetch.read(url, method="POST", headers=headers, body=json.dumps({"question": "\N{SNOWMAN}?"}))
        assert ended == {"outcome": "done"}
        assert by_fetch.data == ["one"]
    assert received == [("POST", {"question": "\N{SNOWMAN}?"}, "text/event-stream", "yes")]


@pytest.fixture
def log() -> Iterator[Log]:
    with MemoryLog() as log:
        yield log


@contextmanager
def keeping(log: Log, upstream: SSEServer) -> Iterator[str]:
    """Relay the upstream through a log; the URL."""

    def chat() -> Any:
        last_event_id = flask.request.headers.get("Last-Event-ID") or flask.request.args.get("last_event_id")
        try:
            stream = log.open("k", lambda: request_sse(upstream.url), last_event_id=last_event_id)
        except SSEError as error:
            return flask.jsonify(error={"message": str(error)}), 503
        return relay.flask.stream_response(stream)

    with serving(chat) as url:
        yield url


def test_reload_goes_on_after_the_last_event(reading: Reading, log: Log) -> None:
    more = threading.Event()
    with SSEServer([send(1), send(2), hold(more), send(3), DONE]) as upstream, keeping(log, upstream) as url:
        reading.begin(url)
        until(lambda: len(reading.seen) == 2)
        _, _, last_event_id = reading.seen[-1]
        reading.chrome.refresh()
        more.set()
        if reading.way == "fetch":
            assert reading.read(url, lastEventId=last_event_id, resumes=True) == {"outcome": "done"}
        else:
            # It cannot send a first Last-Event-ID.
            assert reading.read(url, f"/chat?last_event_id={last_event_id}") == {"outcome": "done"}
        assert reading.data == ["3"]
        assert len(upstream.requests) == 1


def test_reader_that_has_all_events_of_a_log(by_fetch: Reading, log: Log) -> None:
    with SSEServer([send(1), DONE]) as upstream, keeping(log, upstream) as url:
        assert by_fetch.read(url) == {"outcome": "done"}
        stream = log.open("k", decode="event")
        stream.collect()
        # It lacks the last event.
        assert by_fetch.read(url, lastEventId=stream.last_event_id) == {"outcome": "done"}
        fence, _, number = stream.last_event_id.partition("-")
        assert by_fetch.read(url, lastEventId=f"{fence}-{int(number) + 1}") == {"outcome": "ended"}
        assert by_fetch.seen == []


def test_reload_after_a_cancel(by_fetch: Reading, log: Log) -> None:
    with SSEServer([send(1), silence()]) as upstream, keeping(log, upstream) as url:
        by_fetch.begin(url)
        until(lambda: by_fetch.seen)
        _, _, last_event_id = by_fetch.seen[0]
        by_fetch.chrome.refresh()
        assert log.cancel("k")
        assert by_fetch.read(url, lastEventId=last_event_id, resumes=True) == {"outcome": "ended"}


def test_cancelled_stream_of_a_log(reading: Reading, log: Log) -> None:
    with SSEServer([send(1), silence()]) as upstream, keeping(log, upstream) as url:
        reading.begin(url, resumes=True)
        until(lambda: reading.seen)
        assert log.cancel("k")
        assert reading.end == {"outcome": "cancelled"}


def test_end_of_all_relays(reading: Reading) -> None:
    with SSEServer([send(1), silence()]) as upstream, relaying(upstream) as url:
        reading.begin(url)
        until(lambda: reading.seen)
        relay.end_all(retry=5)
        message = "The server was shut down before the answer was complete."
        assert reading.end == reading.failure("shutdown", message)
        upstream.requests[0].wait_aborted()


# Other bytes.


def test_cancelled_for_all_readers(reading: Reading) -> None:
    with playing([send(1), send({"message": "the stream was cancelled"}, "cancelled"), silence()]) as (url, script):
        assert reading.read(url, resumes=True) == {"outcome": "cancelled"}
        assert reading.data == ["1"]
        script.requests[0].wait_aborted()


SHUTDOWN = send({"message": "the server is shutting down"}, "shutdown", retry=0.05)


def test_shutdown_without_another_attempt(reading: Reading) -> None:
    with playing([send(1), SHUTDOWN]) as (url, script):
        message = "The server was shut down before the answer was complete."
        assert reading.read(url) == reading.failure("shutdown", message)
        assert len(script.requests) == 1


def test_shutdown_of_a_server_that_comes_back(reading: Reading) -> None:
    with playing([send(1, id="x\N{SNOWMAN}"), SHUTDOWN], [send(2), DONE]) as (url, script):
        assert reading.read(url, resumes=True, pause=10) == {"outcome": "done"}
        assert reading.data == ["1", "2"]
        assert reading.notes == ["lost: shutdown", "back"]
        assert script.last_event_ids == ["", "x\N{SNOWMAN}".encode().decode("latin-1")]


def test_shutdowns_retry_is_waited_for(by_fetch: Reading) -> None:
    with playing([send(1), send({}, "shutdown", retry=600.0)]) as (url, script):
        by_fetch.begin(url, resumes=True, pause=10)
        until(lambda: by_fetch.notes)
        by_fetch.stop()
        # An abort ends the pause.
        assert by_fetch.end == {"outcome": "stopped"}
        assert len(script.requests) == 1


ENDS: dict[str, list[Step]] = {"chunk": [cut(within=send(2))], "reset": [reset()], "clean": []}


@pytest.mark.parametrize("end", ENDS)
def test_connection_that_is_lost(reading: Reading, end: str) -> None:
    # A reset discards what the browser has not read.
    is_seen = threading.Event()
    with playing([send(1), hold(is_seen), *ENDS[end]]) as (url, script):
        reading.begin(url)
        until(lambda: reading.seen)
        is_seen.set()
        assert reading.end == reading.failure("lost", LOST)
        assert reading.data == ["1"]
        assert len(script.requests) == 1


@pytest.mark.parametrize("end", ENDS)
def test_lost_connection_of_a_kept_answer_is_resumed(reading: Reading, end: str) -> None:
    is_seen = threading.Event()
    answers = [[send(1, id="a", retry=0.01), hold(is_seen), *ENDS[end]], [send(2, id="b"), DONE]]
    with playing(*answers) as (url, script):
        reading.begin(url, resumes=True, pause=10)
        until(lambda: reading.seen)
        is_seen.set()
        assert reading.end == {"outcome": "done"}
        assert reading.data == ["1", "2"]
        assert reading.notes == ["lost: lost", "back"]
        assert script.last_event_ids == ["", "a"]


def test_attempts_are_limited(reading: Reading) -> None:
    with playing([send(1, id="a", retry=0.01)], *[[comment("nothing new")]] * 3) as (url, script):
        assert reading.read(url, resumes=True, pause=10, attempts=3) == reading.failure("lost", LOST)
        assert script.last_event_ids == ["", "a", "a", "a"]


def test_restart_of_the_server_behind_a_proxy(by_fetch: Reading) -> None:
    restarting = [respond(502, {"Retry-After": "0.01"}, content_type="text/html"), raw(b"<h1>Bad Gateway</h1>")]
    with playing([send(1, id="a")], restarting, restarting, [send(2), DONE]) as (url, script):
        assert by_fetch.read(url, resumes=True, pause=10) == {"outcome": "done"}
        assert by_fetch.notes == ["lost: lost", "lost: refused", "lost: refused", "back"]
        assert script.last_event_ids == ["", "a", "a", "a"]


def test_refusal_of_another_attempt_is_final(by_fetch: Reading) -> None:
    refused = [respond(403, content_type="application/json"), raw(b'{"error": {"message": "Log in again."}}')]
    with playing([send(1, id="a")], refused) as (url, _):
        assert by_fetch.read(url, resumes=True, pause=10) == by_fetch.failure("refused", "Log in again.", status=403)


GONE = [respond(410, content_type="application/json"), raw(b'{"error": {"message": "Not kept any more."}}')]
RESTART = ("restart", '{"restart":true}', "")


def test_answer_whose_events_were_lost_begins_again(by_fetch: Reading) -> None:
    with playing([send(1, id="a")], GONE, [send(1, id="b"), send(2, id="c"), DONE]) as (url, script):
        assert by_fetch.read(url, resumes=True, pause=10) == {"outcome": "done"}
        assert by_fetch.seen == [("", "1", "a"), RESTART, ("", "1", "b"), ("", "2", "c")]
        assert by_fetch.notes == ["lost: lost", "back"]
        assert script.last_event_ids == ["", "a", ""]


def test_position_of_an_earlier_reading_that_was_lost_begins_again(by_fetch: Reading) -> None:
    with playing(GONE, [send(1), DONE]) as (url, script):
        assert by_fetch.read(url, lastEventId="a", resumes=True) == {"outcome": "done"}
        assert by_fetch.seen == [RESTART, ("", "1", "")]
        assert script.last_event_ids == ["a", ""]


def test_beginning_that_was_lost_is_a_refusal(by_fetch: Reading) -> None:
    with playing(GONE, GONE) as (url, script):
        gone = by_fetch.failure("refused", "Not kept any more.", status=410)
        assert by_fetch.read(url, lastEventId="a", resumes=True) == gone
        assert script.last_event_ids == ["a", ""]


def test_server_that_loses_each_answer_is_not_asked_without_end(by_fetch: Reading) -> None:
    """An event resets the count of failed attempts, but not that of restarts: each may have been paid for."""
    answer = [send(1, id="a")]
    with playing(*[answer, GONE] * 4) as (url, script):
        gone = by_fetch.failure("refused", "Not kept any more.", status=410)
        assert by_fetch.read(url, resumes=True, pause=10, attempts=2) == gone
        assert script.last_event_ids == ["", "a"] * 3


def test_lost_events_of_a_request_that_must_not_be_repeated(by_fetch: Reading) -> None:
    with playing(GONE) as (url, script):
        gone = by_fetch.failure("refused", "Not kept any more.", status=410)
        assert by_fetch.read(url, lastEventId="a") == gone
        assert len(script.requests) == 1


def test_first_request_is_not_repeated(by_fetch: Reading) -> None:
    with playing([respond(503, content_type="text/html"), raw(b"<h1>Unavailable</h1>")]) as (url, script):
        ended = by_fetch.read(url, resumes=True, pause=10)
        assert ended == by_fetch.failure("refused", "The server answered with status 503.", status=503)
        assert len(script.requests) == 1


def test_page_of_html_is_no_answer(reading: Reading) -> None:
    with playing([respond(framing="length", content_type="text/html"), raw(b"<h1>Log in</h1>")]) as (url, _):
        assert reading.read(url) == reading.failure("refused", "The server refused to answer.", status=200)


def test_server_that_cannot_be_reached(reading: Reading) -> None:
    with playing([DONE]) as (url, _):
        assert reading.read(url) == {"outcome": "done"}
    # The page has the module.
    assert reading.read(url) == reading.failure("unreachable", "The server cannot be reached.")


def test_restart_is_an_event_of_the_page(reading: Reading) -> None:
    with playing([send(1), send({"restart": True}, "restart"), send(1), DONE]) as (url, _):
        assert reading.read(url) == {"outcome": "done"}
        assert reading.seen == [("", "1", ""), ("restart", '{"restart": true}', ""), ("", "1", "")]


def test_data_with_the_word_error_is_no_error(reading: Reading) -> None:
    items = ['{"text": "an \\"error\\""}', '{"error": null}', '{"error" is not JSON', '["error"]']
    with playing([*map(send, items), DONE]) as (url, _):
        assert reading.read(url) == {"outcome": "done"}
        assert reading.data == items


def test_connection_is_used_again_after_an_answer(by_fetch: Reading) -> None:
    with SSEServer(Answers(*[[send(1), DONE]] * 3)) as server:
        for _ in range(3):
            assert by_fetch.read(server.url) == {"outcome": "done"}
        until(lambda: server.open_requests == 0)
        assert server.aborted_requests == 0


def test_response_without_an_end_after_its_last_event_is_aborted(by_fetch: Reading) -> None:
    with playing([send(1), DONE, silence()]) as (url, script):
        began = time.monotonic()
        assert by_fetch.read(url) == {"outcome": "done"}
        script.requests[0].wait_aborted()
        assert time.monotonic() - began < 30


# The parser.

SPLIT = """
const { readByFetch } = await import("/relay.js");
const bytes = new TextEncoder().encode(arguments[0]);
const outcomes = new Set();
for (let first = 0; first <= bytes.length; first++) {
    const second = Math.min(bytes.length, first + arguments[1]);
    const chunks = [bytes.slice(0, first), bytes.slice(first, second), bytes.slice(second)];
    const filled = chunks.filter((chunk) => chunk.length);
    const pull = (body) => (filled.length ? body.enqueue(filled.shift()) : body.close());
    const headers = { "Content-Type": "text/event-stream; charset=utf-8" };
    window.fetch = async () => new Response(new ReadableStream({ pull }), { headers });
    const events = [];
    const onEvent = ({ event, id, data }) => events.push([event, id, data]);
    await readByFetch("", { onEvent }).catch(({ kind }) => events.push(kind));
    outcomes.add(JSON.stringify(events));
}
return [...outcomes];
"""


@pytest.mark.parametrize("length", [1, 2, 1000])
def test_parser_follows_the_standard_at_every_split(by_fetch: Reading, length: int) -> None:
    comment_and_line_ends = "\ufeffdata: a\r\n\r\n: c\n\nid: 1\rdata\rdata:b \N{SNOWMAN}\r\r"
    fields = "event: x\ndata:  c: d\n\nid\ndata:\n\nid: no\0\nretry: 1x\nevent: message\ndata: e\n\nid:2\n\n"
    with playing() as (url, _):
        by_fetch.chrome.get(url)
        text = f"{comment_and_line_ends}{fields}data:f\r\r\n\ndata: lost\n"
        outcomes = by_fetch.chrome.execute_script(SPLIT, text, length)
    assert [json.loads(events) for events in outcomes] == [
        [
            ["", "", "a"],
            ["", "1", "\nb \N{SNOWMAN}"],
            ["x", "1", " c: d"],
            ["", "", ""],
            ["", "", "e"],
            ["", "2", "f"],
            "lost",
        ]
    ]


def test_large_event_in_small_pieces_takes_linear_time(by_fetch: Reading) -> None:
    script = """
    const { readByFetch } = await import("/relay.js");
    const piece = new TextEncoder().encode("x".repeat(16));
    let left = arguments[0];
    const pull = (body) => {
        if (left--) return body.enqueue(piece);
        body.enqueue(new TextEncoder().encode("\\n\\ndata: [DONE]\\n\\n"));
        body.close();
    };
    const start = (body) => body.enqueue(new TextEncoder().encode("data: "));
    const headers = { "Content-Type": "text/event-stream" };
    window.fetch = async () => new Response(new ReadableStream({ start, pull }), { headers });
    const lengths = [];
    await readByFetch("", { onEvent: ({ data }) => lengths.push(data.length) });
    return lengths;
    """
    with playing() as (url, _):
        by_fetch.chrome.get(url)
        # In quadratic time this would take minutes.
        assert by_fetch.chrome.execute_script(script, 200_000) == [3_200_000]
