"""The page of examples/flask_chat with kept answers: reloaded in Chromium while its workers are killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium import webdriver

from sseqbridge import EventStream, request_sse
from sseqbridge.testing import hold, respond, send, silence
from tests.browser_support import (
    FLASK_CHAT,
    HELD_QUESTION,
    ControlledResponse,
    ControlledUpstream,
    Page,
    Program,
    chromium,
    running,
)
from tests.redis_support import RedisServer, redis_server
from tests.support import reserved_port, until

pytestmark = [pytest.mark.browser, pytest.mark.redis, pytest.mark.server]

WAYS = ["fetch", "eventsource"]
WORDS = [f"{number} " for number in range(1, 201)]


class Site:
    """The page, and the workers that serve it."""

    def __init__(self, url: str, program: Program, redis: RedisServer) -> None:
        self.url = url
        self.program = program
        self._redis = redis

    def kill_worker_of(self, response: ControlledResponse) -> int:
        """Kill the worker that requested this response, end its lease, and return its process ID."""
        pid = int(response.request.headers["authorization"].removeprefix("Bearer "))
        assert pid in self._workers()
        with self._redis.client() as client:
            leases = {key: client.get(key) for key in client.scan_iter("*:lease")}
            os.kill(pid, signal.SIGKILL)
            until(lambda: pid not in self._workers(), 30)
            # By its second reply Redis has executed the killed worker's last commands.
            assert client.ping()
            assert client.ping()
            for key, token in leases.items():
                if client.get(key) == token:
                    client.delete(key)
        return pid

    def _workers(self) -> list[int]:
        master = self.program.process.pid
        return [int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()]


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    with chromium() as chrome:
        yield chrome


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@contextmanager
def serving(
    cwd: Path, upstream: ControlledUpstream, redis: RedisServer, workers: int = 2, abandon_after: float = 600
) -> Iterator[Site]:
    with reserved_port() as port:
        command = [
            sys.executable, "-m", "gunicorn", "--workers", str(workers), "--threads", "16",
            "--bind", f"127.0.0.1:{port}", "tests.apps.kept_chat:create_app()",
        ]  # fmt: skip
        variables = {"OPENAI_BASE_URL": upstream.base_url, "REDIS_URL": redis.url, "HOME": str(cwd)}
        variables["ABANDON_AFTER"] = str(abandon_after)
        with running(command, cwd, **variables) as program:
            until(lambda: program.output.count("Booting worker") == workers or program.process.poll() is not None, 60)
            yield Site(f"http://127.0.0.1:{port}/", program, redis)


@pytest.fixture(scope="module")
def upstream_and_site(
    redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ControlledUpstream, Site]]:
    """An upstream, and the site."""
    with (
        ControlledUpstream() as upstream,
        serving(tmp_path_factory.mktemp("site"), upstream, redis) as site,
    ):
        yield upstream, site


@pytest.fixture
def upstream(upstream_and_site: tuple[ControlledUpstream, Site]) -> ControlledUpstream:
    """The upstream of the page."""
    upstream, _ = upstream_and_site
    upstream.reset()
    return upstream


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """How the page reads a stream."""
    name: str = request.param
    return name


@pytest.fixture
def site(upstream_and_site: tuple[ControlledUpstream, Site]) -> Site:
    return upstream_and_site[1]


@pytest.fixture
def page(chrome: webdriver.Chrome, site: Site, way: str, upstream: ControlledUpstream) -> Iterator[Page]:
    """A new page in a new tab, which has its own session storage."""
    first = chrome.current_window_handle
    chrome.switch_to.new_window("tab")
    yield Page(chrome, site.url, way)
    chrome.close()
    chrome.switch_to.window(first)


def test_reload_and_a_killed_worker_lose_no_event(
    page: Page, site: Site, upstream: ControlledUpstream, chrome: webdriver.Chrome
) -> None:
    page.ask("Count")
    response = upstream.response()
    response.send_text(*WORDS[:50])
    page.wait_for_answer("".join(WORDS[:50]), "streaming")
    chrome.refresh()
    page.wait_for_answer("".join(WORDS[:50]), "streaming")
    assert page.find(".question .text").text == "Count"
    response.send_text(*WORDS[50:100])
    page.wait_for_answer("".join(WORDS[:100]), "streaming")
    assert (upstream.request_count, response.request.aborted.is_set()) == (1, False)

    killed = site.kill_worker_of(response)
    response.request.wait_aborted(60)
    rest = upstream.response(2)
    assert rest.request.headers["authorization"] != f"Bearer {killed}"
    assert rest.request.json()["messages"] == [{"role": "user", "content": "Count"}]
    rest.send_text(*WORDS[:20])
    # The text from the killed worker is discarded.
    page.wait_for_answer("".join(WORDS[:20]), "streaming")
    chrome.refresh()
    rest.send_text(*WORDS[20:])
    rest.end()
    page.wait_for_answer("".join(WORDS), "done")
    assert page.error == ""
    assert upstream.request_count == 2


def test_page_reconnects_when_its_worker_is_killed(
    chrome: webdriver.Chrome, redis: RedisServer, upstream: ControlledUpstream, way: str, tmp_path: Path
) -> None:
    with serving(tmp_path, upstream, redis, workers=1) as site:
        page = Page(chrome, site.url, way)
        page.ask("Count")
        response = upstream.response()
        response.send_text(*WORDS[:50])
        page.wait_for_answer("".join(WORDS[:50]), "streaming")
        site.kill_worker_of(response)
        rest = upstream.response(2)
        rest.send_text(*WORDS)
        rest.end()
        page.wait_for_answer("".join(WORDS), "done")
        assert (page.error, upstream.request_count) == ("", 2)
        chrome.get("about:blank")


def test_early_reload_sends_no_second_upstream_request(
    page: Page, upstream: ControlledUpstream, chrome: webdriver.Chrome
) -> None:
    begin = threading.Event()
    upstream.script = [hold(begin), respond(), send({"choices": [{"delta": {"content": "At last"}}]}), send("[DONE]")]
    page.ask("Think")
    request = upstream.response().request
    chrome.refresh()
    page.wait_for_answer("", "waiting")
    assert not request.aborted.is_set()
    begin.set()
    page.wait_for_answer("At last", "done")
    assert upstream.request_count == 1


def test_stop_aborts_an_upstream_that_has_not_begun(page: Page, upstream: ControlledUpstream) -> None:
    upstream.script = [silence()]
    page.ask("Think")
    request = upstream.response().request
    page.wait_for_answer("", "waiting")
    page.stop()
    page.wait_for_answer("", "stopped")
    request.wait_aborted(60)
    assert upstream.request_count == 1


@pytest.mark.parametrize("way", ["fetch"])
def test_stop_before_the_question_arrives(page: Page, upstream: ControlledUpstream) -> None:
    page.run(HELD_QUESTION)
    page.ask("Think")
    page.wait_for_answer("", "waiting")
    page.stop()
    until(lambda: page.run("return window.refusedStops"), 60)
    page.run("sendQuestion()")
    upstream.response().request.wait_aborted(60)
    page.wait_for_answer("", "stopped")


def test_complete_answer_is_not_read_again(page: Page, upstream: ControlledUpstream, chrome: webdriver.Chrome) -> None:
    page.ask("Count")
    response = upstream.response()
    response.send_text("one")
    page.wait_for_answer("one", "streaming")
    chrome.refresh()
    response.end()
    page.wait_for_answer("one", "done")
    chrome.refresh()
    until(lambda: page.count("open") == 0, 60)
    assert (page.answer, upstream.request_count) == ("", 1)


def test_stop_aborts_the_upstream_after_a_reload(
    page: Page, upstream: ControlledUpstream, chrome: webdriver.Chrome
) -> None:
    for number in (1, 2):
        page.ask("Think")
        response = upstream.response(number)
        response.send_text("Hm")
        page.wait_for_answer("Hm", "streaming")
        if number == 2:
            chrome.refresh()
            page.wait_for_answer("Hm", "streaming")
        page.stop()
        page.wait_for_answer("Hm", "stopped")
        # The worker that has the request aborts it, long before it would be abandoned.
        response.request.wait_aborted(60)
    chrome.refresh()
    until(lambda: page.count("open") == 0, 60)
    assert (page.answer, upstream.request_count) == ("", 2)


def test_reload_restores_the_conversation(
    page: Page, upstream: ControlledUpstream, chrome: webdriver.Chrome, way: str
) -> None:
    page.ask("My name is Ada")
    upstream.response().send_text("Hello!")
    upstream.response().end()
    page.wait_for_answer("Hello!", "done")
    page.ask("What is it?")
    upstream.response(2).send_text("Ada, ")
    page.wait_for_answer("Ada, ", "streaming")
    chrome.refresh()
    page.wait_for_answer("Ada, ", "streaming")
    upstream.response(2).send_text("I think")
    upstream.response(2).end()
    page.wait_for_answer("Ada, I think", "done")
    texts = page.run("return [...document.querySelectorAll('#log .text')].map((text) => text.textContent)")
    assert texts == ["My name is Ada", "Hello!", "What is it?", "Ada, I think"]
    page.ask("Sure?")
    contents = [message["content"] for message in upstream.response(3).request.json()["messages"]]
    assert contents == (["Sure?"] if way == "eventsource" else [*texts, "Sure?"])
    page.stop()


def test_abandoned_answer_is_aborted(
    chrome: webdriver.Chrome, redis: RedisServer, upstream: ControlledUpstream, tmp_path: Path
) -> None:
    with serving(tmp_path, upstream, redis, workers=1, abandon_after=1) as site:
        page = Page(chrome, site.url, "fetch")
        page.ask("Think")
        response = upstream.response()
        response.send_text("Hm")
        page.wait_for_answer("Hm", "streaming")
        chrome.get("about:blank")
        response.request.wait_aborted(60)
        chrome.back()
        page.wait_for_answer("Hm", "stopped")
        assert page.error == ""
        assert upstream.request_count == 1
        chrome.get("about:blank")


def request_answer(site: Site, key: str, last_event_id: str = "") -> EventStream[Any]:
    data = {"messages": [{"role": "user", "content": "Hello"}]}
    return request_sse(f"{site.url}chat", {"Last-Event-ID": last_event_id}, data, params={"key": key}).events


def test_unknown_answer_is_refused(site: Site, upstream: ControlledUpstream) -> None:
    assert request_answer(site, "a key of a page's", "1-1").status == 410
    for key in ("", "{", "x" * 513):
        assert request_answer(site, key).status == 400
        assert httpx.delete(f"{site.url}chat", params={"key": key}, timeout=60).status_code == 400
    assert httpx.delete(f"{site.url}chat", params={"key": "nobody's"}, timeout=60).status_code == 404
    assert upstream.request_count == 0


def test_keys_of_a_page_are_unguessable(page: Page, upstream: ControlledUpstream) -> None:
    page.ask("Count")
    upstream.response().send_text("one")
    page.wait_for_answer("one", "streaming")
    script = "return JSON.parse(sessionStorage.getItem('reading')).key"
    key = page.run(script)
    page.stop()
    page.wait_for_answer("one", "stopped")
    page.run("location.reload()")
    until(lambda: page.count("open") == 0, 60)
    page.ask("Count")
    upstream.response(2).send_text("one")
    page.wait_for_answer("one", "streaming")
    other = page.run(script)
    page.stop()
    assert len(key.partition(".")[0]) == 43
    assert key.partition(".")[0] != other.partition(".")[0]


def test_one_process_keeps_answers_without_redis(chrome: webdriver.Chrome, upstream: ControlledUpstream) -> None:
    with running([*FLASK_CHAT, "0"], OPENAI_BASE_URL=upstream.base_url, KEEP_ANSWERS="1") as program:
        page = Page(chrome, program.wait_for_output(r"http://\S+:\d+/")[0])
        page.ask("Count")
        response = upstream.response()
        response.send_text("one ")
        page.wait_for_answer("one ", "streaming")
        chrome.refresh()
        response.send_text("two")
        page.wait_for_answer("one two", "streaming")
        page.stop()
        page.wait_for_answer("one two", "stopped")
        response.request.wait_aborted(60)
        assert upstream.request_count == 1
        chrome.get("about:blank")
