"""The page of examples/flask_chat with kept answers: reloaded in Chromium while its workers are killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium import webdriver

from sseqbridge import EventStream, request_sse
from sseqbridge.testing import hold, respond, send, silence
from tests.browser_support import (
    FLASK_CHAT,
    Answer,
    Page,
    Program,
    Puppet,
    chromium,
    npm_directory,
    reserved_port,
    running,
)
from tests.redis_support import RedisServer, redis_server
from tests.support import until

# The browser and the workers take their time on a machine that is busy.
pytestmark = [pytest.mark.browser, pytest.mark.redis, pytest.mark.server, pytest.mark.timeout(180)]

WAYS = ["npm", "stand-in", "eventsource"]
WORDS = [f"{number} " for number in range(1, 201)]


class Site:
    """The page, and the workers that serve it."""

    def __init__(self, url: str, program: Program, redis: RedisServer) -> None:
        self.url = url
        self.program = program
        self._redis = redis

    def kill_worker_of(self, answer: Answer) -> int:
        """Kill the process that has asked the upstream for an answer, have its lease run out, and return its id."""
        pid = int(answer.request.headers["authorization"].removeprefix("Bearer "))
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
    cwd: Path, puppet: Puppet, redis: RedisServer, workers: int = 2, abandon_after: float = 600
) -> Iterator[Site]:
    with reserved_port() as port:
        command = [
            sys.executable, "-m", "gunicorn", "--workers", str(workers), "--threads", "16",
            "--bind", f"127.0.0.1:{port}", "tests.apps.kept_chat:create_app()",
        ]  # fmt: skip
        variables = {"OPENAI_BASE_URL": puppet.base_url, "REDIS_URL": redis.url, "HOME": str(cwd)}
        variables["ABANDON_AFTER"] = str(abandon_after)
        with running(command, cwd, **variables) as program:
            until(lambda: program.printed.count("Booting worker") == workers or program.process.poll() is not None, 60)
            yield Site(f"http://127.0.0.1:{port}/", program, redis)


@pytest.fixture(scope="module")
def all_of_them(
    redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Puppet, dict[str, Site]]]:
    """An upstream, and the page: with npm's module, and without."""
    directories = {"npm": npm_directory(), "stand-in": tmp_path_factory.mktemp("without_npm")}
    with ExitStack() as stack:
        puppet = stack.enter_context(Puppet())
        sites = {name: stack.enter_context(serving(cwd, puppet, redis)) for name, cwd in directories.items()}
        yield puppet, {**sites, "eventsource": sites["stand-in"]}


@pytest.fixture
def puppet(all_of_them: tuple[Puppet, dict[str, Site]]) -> Puppet:
    """The upstream that the page asks."""
    puppet, _ = all_of_them
    puppet.reset()
    return puppet


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """How the page reads: by fetch, of npm's module or the stand-in for it, or by EventSource."""
    name: str = request.param
    return name


@pytest.fixture
def site(way: str, all_of_them: tuple[Puppet, dict[str, Site]]) -> Site:
    return all_of_them[1][way]


@pytest.fixture
def page(chrome: webdriver.Chrome, site: Site, way: str, puppet: Puppet) -> Iterator[Page]:
    """The page, new, once for each way in: in a tab of its own, which has a session of its own."""
    first = chrome.current_window_handle
    chrome.switch_to.new_window("tab")
    yield Page(chrome, site.url, "eventsource" if way == "eventsource" else "fetch")
    chrome.close()
    chrome.switch_to.window(first)


def test_reload_and_a_killed_worker_lose_no_event(
    page: Page, site: Site, puppet: Puppet, chrome: webdriver.Chrome
) -> None:
    page.ask("Count")
    answer = puppet.answer()
    answer.say(*WORDS[:50])
    page.shows("".join(WORDS[:50]), "streaming")
    chrome.refresh()
    page.shows("".join(WORDS[:50]), "streaming")
    assert page.find(".question .text").text == "Count"
    answer.say(*WORDS[50:100])
    page.shows("".join(WORDS[:100]), "streaming")
    assert (puppet.asked, answer.request.aborted.is_set()) == (1, False)

    killed = site.kill_worker_of(answer)
    answer.request.wait_aborted(60)
    rest = puppet.answer(2)
    assert rest.request.headers["authorization"] != f"Bearer {killed}"
    assert rest.request.json()["messages"] == [{"role": "user", "content": "Count"}]
    rest.say(*WORDS[:20])
    # The text from the killed worker is discarded.
    page.shows("".join(WORDS[:20]), "streaming")
    chrome.refresh()
    rest.say(*WORDS[20:])
    rest.end()
    page.shows("".join(WORDS), "done")
    assert page.error == ""
    assert puppet.asked == 2


def test_page_reconnects_when_its_worker_is_killed(
    chrome: webdriver.Chrome, redis: RedisServer, puppet: Puppet, way: str, tmp_path: Path
) -> None:
    with serving(npm_directory() if way == "npm" else tmp_path, puppet, redis, workers=1) as site:
        page = Page(chrome, site.url, "eventsource" if way == "eventsource" else "fetch")
        page.ask("Count")
        answer = puppet.answer()
        answer.say(*WORDS[:50])
        page.shows("".join(WORDS[:50]), "streaming")
        site.kill_worker_of(answer)
        rest = puppet.answer(2)
        rest.say(*WORDS)
        rest.end()
        page.shows("".join(WORDS), "done")
        assert (page.error, puppet.asked) == ("", 2)
        chrome.get("about:blank")


def test_early_reload_sends_no_second_upstream_request(page: Page, puppet: Puppet, chrome: webdriver.Chrome) -> None:
    begin = threading.Event()
    puppet.script = [hold(begin), respond(), send({"choices": [{"delta": {"content": "At last"}}]}), send("[DONE]")]
    page.ask("Think")
    asked = puppet.answer().request
    chrome.refresh()
    page.shows("", "waiting")
    assert not asked.aborted.is_set()
    begin.set()
    page.shows("At last", "done")
    assert puppet.asked == 1


def test_stop_aborts_an_upstream_that_has_not_begun(page: Page, puppet: Puppet) -> None:
    puppet.script = [silence()]
    page.ask("Think")
    asked = puppet.answer().request
    page.shows("", "waiting")
    page.stop()
    page.shows("", "stopped")
    asked.wait_aborted(60)
    assert puppet.asked == 1


def test_an_answer_that_is_complete_is_not_read_again(page: Page, puppet: Puppet, chrome: webdriver.Chrome) -> None:
    page.ask("Count")
    answer = puppet.answer()
    answer.say("one")
    page.shows("one", "streaming")
    chrome.refresh()
    answer.end()
    page.shows("one", "done")
    chrome.refresh()
    until(lambda: page.count("open") == 0, 60)
    assert (page.answer, puppet.asked) == ("", 1)


def test_stop_aborts_the_upstream_after_a_reload(page: Page, puppet: Puppet, chrome: webdriver.Chrome) -> None:
    for number in (1, 2):
        page.ask("Think")
        answer = puppet.answer(number)
        answer.say("Hm")
        page.shows("Hm", "streaming")
        if number == 2:
            chrome.refresh()
            page.shows("Hm", "streaming")
        page.stop()
        page.shows("Hm", "stopped")
        # By whichever worker asks it, long before it would miss a reader.
        answer.request.wait_aborted(60)
    chrome.refresh()
    until(lambda: page.count("open") == 0, 60)
    assert (page.answer, puppet.asked) == ("", 2)


def test_reload_restores_the_conversation(page: Page, puppet: Puppet, chrome: webdriver.Chrome, way: str) -> None:
    page.ask("My name is Ada")
    puppet.answer().say("Hello!")
    puppet.answer().end()
    page.shows("Hello!", "done")
    page.ask("What is it?")
    puppet.answer(2).say("Ada, ")
    page.shows("Ada, ", "streaming")
    chrome.refresh()
    page.shows("Ada, ", "streaming")
    puppet.answer(2).say("I think")
    puppet.answer(2).end()
    page.shows("Ada, I think", "done")
    texts = page.run("return [...document.querySelectorAll('#log .text')].map((text) => text.textContent)")
    assert texts == ["My name is Ada", "Hello!", "What is it?", "Ada, I think"]
    page.ask("Sure?")
    asked = [said["content"] for said in puppet.answer(3).request.json()["messages"]]
    assert asked == (["Sure?"] if way == "eventsource" else [*texts, "Sure?"])
    page.stop()


@pytest.mark.parametrize("way", ["npm", "stand-in"])
def test_abandoned_answer_is_aborted(
    chrome: webdriver.Chrome, redis: RedisServer, puppet: Puppet, way: str, tmp_path: Path
) -> None:
    directory = npm_directory() if way == "npm" else tmp_path
    with serving(directory, puppet, redis, workers=1, abandon_after=1) as site:
        page = Page(chrome, site.url, "fetch")
        page.ask("Think")
        answer = puppet.answer()
        answer.say("Hm")
        page.shows("Hm", "streaming")
        chrome.get("about:blank")
        answer.request.wait_aborted(60)
        chrome.back()
        page.shows("Hm", "failed")
        assert page.error == "The connection was lost before the answer was complete."
        assert puppet.asked == 1
        chrome.get("about:blank")


def asked(site: Site, key: str, last_event_id: str = "") -> EventStream[Any]:
    data = {"messages": [{"role": "user", "content": "Hello"}]}
    return request_sse(f"{site.url}chat", {"Last-Event-ID": last_event_id}, data, params={"key": key}).events


@pytest.mark.parametrize("way", ["stand-in"])
def test_unknown_answer_is_refused(site: Site, puppet: Puppet) -> None:
    assert asked(site, "a key of a page's", "1-1").status == 410
    for key in ("", "{", "x" * 513):
        assert asked(site, key).status == 400
        assert httpx.delete(f"{site.url}chat", params={"key": key}, timeout=60).status_code == 400
    assert httpx.delete(f"{site.url}chat", params={"key": "nobody's"}, timeout=60).status_code == 204
    assert puppet.asked == 0


def test_keys_of_a_page_are_unguessable(page: Page, puppet: Puppet) -> None:
    page.ask("Count")
    puppet.answer().say("one")
    page.shows("one", "streaming")
    script = "return JSON.parse(sessionStorage.getItem('reading')).key"
    key = page.run(script)
    page.stop()
    page.shows("one", "stopped")
    page.run("location.reload()")
    until(lambda: page.count("open") == 0, 60)
    page.ask("Count")
    puppet.answer(2).say("one")
    page.shows("one", "streaming")
    other = page.run(script)
    page.stop()
    assert len(key.partition(".")[0]) == 43
    assert key.partition(".")[0] != other.partition(".")[0]


def test_one_process_keeps_answers_without_a_redis(chrome: webdriver.Chrome, puppet: Puppet) -> None:
    with running([*FLASK_CHAT, "0"], OPENAI_BASE_URL=puppet.base_url, KEEP_ANSWERS="1") as program:
        page = Page(chrome, program.prints(r"http://\S+:\d+/")[0])
        page.ask("Count")
        answer = puppet.answer()
        answer.say("one ")
        page.shows("one ", "streaming")
        chrome.refresh()
        answer.say("two")
        page.shows("one two", "streaming")
        page.stop()
        page.shows("one two", "stopped")
        answer.request.wait_aborted(60)
        assert puppet.asked == 1
        chrome.get("about:blank")
