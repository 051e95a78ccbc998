"""examples/small_chat under Flask and FastAPI, in Chromium: reloads, a second device, Stop, and every ending."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sseqbridge import request_sse
from sseqbridge.testing import respond
from tests.browser_support import HELD_QUESTION, ControlledUpstream, chromium, running
from tests.examples.commands import COMMANDS, documented, parts_of_block
from tests.examples.guides import example, shell
from tests.redis_support import redis_server
from tests.support import reserved_port, until

pytestmark = [pytest.mark.server, pytest.mark.browser]

GUNICORN = documented("gunicorn -k gthread --threads 100 examples.small_chat.flask_app:app")
UVICORN = documented("uvicorn examples.small_chat.fastapi_app:app")
# The guide's commands for several processes. test_commands.py runs the first one, which installs packages.
[_BLOCK] = shell("examples/reload.md", "Reload-safe answers with Redis, Stop, and a second device")
_, OF_THE_GUIDE = (COMMANDS[command] for command in parts_of_block(_BLOCK))
SERVERS = {
    "flask": [*GUNICORN.words, "--bind", "127.0.0.1:{port}"],
    "flask redis": [*OF_THE_GUIDE.words, "--bind", "127.0.0.1:{port}"],
    "fastapi": [*UVICORN.words, "--port", "{port}"],
    "fastapi redis": [*UVICORN.words, "--port", "{port}", "--workers", "2"],
}


class Page:
    """The page in a tab of its own."""

    def __init__(self, chrome: webdriver.Chrome, url: str) -> None:
        self._chrome = chrome
        chrome.switch_to.new_window("tab")
        self._tab = chrome.current_window_handle
        chrome.get(url)

    @property
    def chrome(self) -> webdriver.Chrome:
        self._chrome.switch_to.window(self._tab)
        return self._chrome

    def ask(self, question: str) -> str:
        """Ask, and return the address of the answer."""
        before = self.chrome.current_url
        self.chrome.find_element(By.NAME, "question").send_keys(question, Keys.ENTER)
        until(lambda: self.chrome.current_url != before, 60)
        return self.chrome.current_url

    def shows(self, question: str, text: str, note: str) -> None:
        """Wait until the last answer is this one."""
        script = """
            const text = [...document.querySelectorAll("article")].at(-1)?.innerText ?? "";
            return text.split("\\n").map((line) => line.trim()).filter(Boolean);
        """
        expected = [part for part in (question, text, note) if part]
        try:
            until(lambda: self.chrome.execute_script(script) == expected, 60)
        except TimeoutError:
            assert self.chrome.execute_script(script) == expected

    def close(self) -> None:
        self.chrome.close()
        self._chrome.switch_to.window(self._chrome.window_handles[0])


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    with chromium() as chrome:
        yield chrome


@pytest.fixture(scope="module")
def upstream() -> Iterator[ControlledUpstream]:
    with ControlledUpstream() as upstream:
        yield upstream


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.redis] if "redis" in name else []) for name in SERVERS],
)
def url(
    request: pytest.FixtureRequest, upstream: ControlledUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of the page, under each server."""
    directory = tmp_path_factory.mktemp("site")
    with contextlib.ExitStack() as stack:
        variables = {"OPENAI_BASE_URL": upstream.base_url, "HOME": str(directory)}
        if "redis" in request.param:
            assert "REDIS_URL" in OF_THE_GUIDE.variables
            variables["REDIS_URL"] = stack.enter_context(redis_server()).url
        port = stack.enter_context(reserved_port())
        command = [argument.format(port=port) for argument in SERVERS[request.param]]
        program = stack.enter_context(running(command, directory, **variables))
        address = f"http://127.0.0.1:{port}/"
        program.wait_until_serving(address)
        yield address
        assert "Traceback" not in program.output, program.output


@pytest.fixture
def page(chrome: webdriver.Chrome, url: str, upstream: ControlledUpstream) -> Iterator[Page]:
    upstream.reset()
    page = Page(chrome, url)
    yield page
    page.close()


@example("examples/reload.md", "Reload-safe answers with Redis, Stop, and a second device")
def test_answer_continues_after_a_reload_and_on_another_device(
    page: Page, chrome: webdriver.Chrome, upstream: ControlledUpstream
) -> None:
    address = page.ask("Count?")
    response = upstream.response()
    assert response.request.json()["messages"] == [{"role": "user", "content": "Count?"}]
    response.send_text("one, ")
    page.shows("Count?", "one,", "")
    page.chrome.refresh()
    page.shows("Count?", "one,", "")
    second = Page(chrome, address)
    response.send_text("<two>")
    second.shows("Count?", "one, <two>", "")
    response.end()
    for each in (page, second):
        each.shows("Count?", "one, <two>", "Complete")
    second.close()
    page.chrome.refresh()
    page.shows("Count?", "one, <two>", "Complete")
    assert upstream.request_count == 1


def test_stop_ends_the_answer_on_every_device(
    page: Page, chrome: webdriver.Chrome, upstream: ControlledUpstream
) -> None:
    address = page.ask("Think?")
    upstream.response().send_text("Hm")
    page.shows("Think?", "Hm", "")
    second = Page(chrome, address)
    second.shows("Think?", "Hm", "")
    second.chrome.find_element(By.NAME, "stop").click()
    for each in (page, second):
        each.shows("Think?", "Hm", "Stopped")
    upstream.response().request.wait_aborted(60)
    second.close()


@pytest.mark.parametrize("url", ["flask", "fastapi"], indirect=True)
def test_stop_before_the_question_arrives(page: Page, upstream: ControlledUpstream) -> None:
    page.chrome.execute_script(HELD_QUESTION)
    page.ask("Early?")
    page.chrome.find_element(By.NAME, "stop").click()
    until(lambda: page.chrome.execute_script("return window.refusedStops"), 60)
    page.chrome.execute_script("sendQuestion()")
    page.shows("Early?", "", "Stopped")
    upstream.response().request.wait_aborted(60)


def test_failures_are_shown(page: Page, upstream: ControlledUpstream) -> None:
    page.ask("Cut?")
    upstream.response().send_text("So f")
    upstream.response().cut()
    page.shows("Cut?", "So f", "The upstream's stream was cut off.")
    upstream.script = [respond(429, {"Retry-After": "20"}, json={})]
    page.ask("Too many?")
    page.shows("Too many?", "", "The upstream refused the request: 429 Too Many Requests.")


def test_a_head_request_asks_nothing(url: str, upstream: ControlledUpstream) -> None:
    upstream.reset()
    assert httpx.head(f"{url}answers/nothing", timeout=60).status_code in (200, 405)
    assert upstream.request_count == 0


@pytest.mark.parametrize("url", ["flask", "fastapi"], indirect=True)
def test_malformed_question_is_refused(url: str, upstream: ControlledUpstream) -> None:
    upstream.reset()
    bodies: list[Any] = [[], {}, {"question": 1}]
    for body in bodies:
        assert httpx.post(f"{url}answers/a-key", json=body, timeout=60).status_code in (400, 422)
    assert upstream.request_count == 0


@pytest.mark.parametrize("url", ["flask", "fastapi"], indirect=True)
def test_unknown_answer_is_404(url: str, upstream: ControlledUpstream) -> None:
    upstream.reset()
    events: Any = request_sse(f"{url}answers/unknown").events
    assert (events.status, upstream.request_count) == (404, 0)
    events.close()
