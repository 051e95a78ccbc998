"""examples/django_chat: its migrations, and the site under real servers and in Chromium."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sseqbridge import EventStream, request_sse
from tests.browser_support import HELD_QUESTION, ControlledUpstream, chromium, running
from tests.examples.commands import documented
from tests.proxy import CuttingProxy
from tests.redis_support import redis_server
from tests.support import ROOT, reserved_port, until

PROJECT = documented("python -m examples.django_chat COMMAND").words[:-1]
GUNICORN = documented("gunicorn -k gthread --threads 100 examples.django_chat.wsgi")
UVICORN = documented("uvicorn examples.django_chat.asgi:application")
RUNSERVER = documented("python -m examples.django_chat runserver")
CREATE_USER = documented("python -m examples.django_chat createsuperuser")
SERVERS = {
    "gunicorn": [*GUNICORN.words, "--bind", "127.0.0.1:{port}"],
    "uvicorn": [*UVICORN.words, "--port", "{port}"],
    "runserver": [*RUNSERVER.words, "--noreload", "{port}"],
}
PASSWORD = "correct horse"
SETTINGS = {"DJANGO_SETTINGS_MODULE": "tests.apps.django_chat_settings"}


def manage(*arguments: str, **variables: str) -> str:
    """Run a command of the project, and return its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **variables}
    done = subprocess.run(
        [*PROJECT, *arguments], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Site(NamedTuple):
    server: str
    url: str
    database: Path

    def add_running_answer(self, question: str) -> None:
        """Add an answer as a process leaves it that is killed."""
        with contextlib.closing(sqlite3.connect(self.database)) as database, database:
            row = (question, uuid4().hex)
            columns = "(user_id, question, text, outcome, key) VALUES (1, ?, '', 'running', ?)"
            database.execute(f"INSERT INTO django_chat_answer {columns}", row)

    def log_in(self, client: httpx.Client) -> dict[str, str]:
        """Log in, and return the headers of later requests."""
        login = f"{self.url}/accounts/login/"
        client.get(login).raise_for_status()
        form = {"username": "ada", "password": PASSWORD, "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        assert client.post(login, data=form).status_code == 302
        client.get(f"{self.url}/").raise_for_status()
        cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        return {"Cookie": cookies, "X-CSRFToken": client.cookies["csrftoken"]}


@pytest.fixture(scope="module")
def upstream() -> Iterator[ControlledUpstream]:
    with ControlledUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a user, for copies."""
    path = tmp_path_factory.mktemp("migrated") / "database"
    database = {"DATABASE": str(path), **SETTINGS}
    manage("migrate", **database)
    names = {"DJANGO_SUPERUSER_USERNAME": "ada", "DJANGO_SUPERUSER_EMAIL": "ada@localhost"}
    manage(CREATE_USER.words[-1], "--noinput", **database, **names, DJANGO_SUPERUSER_PASSWORD=PASSWORD)
    return path


def prepared(directory: Path, migrated: Path, upstream: ControlledUpstream) -> dict[str, str]:
    """Copy the database, and return the environment of a server."""
    database = shutil.copy(migrated, directory / "database")
    return {"DATABASE": str(database), "OPENAI_BASE_URL": upstream.base_url, "HOME": str(directory), **SETTINGS}


def command_of(server: str, port: int) -> list[str]:
    return [argument.format(port=port) for argument in SERVERS[server]]


@pytest.fixture(scope="module", params=SERVERS)
def site(
    request: pytest.FixtureRequest,
    upstream: ControlledUpstream,
    migrated: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """The site with a user, under each server."""
    directory = tmp_path_factory.mktemp("site")
    variables = prepared(directory, migrated, upstream)
    with reserved_port() as port, running(command_of(request.param, port), directory, **variables) as program:
        url = f"http://127.0.0.1:{port}"
        program.wait_until_serving(url)
        yield Site(request.param, url, directory / "database")
        assert "Traceback" not in program.output


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    with chromium() as chrome:
        yield chrome


class ChatPage:
    """A page of the site, logged in."""

    def __init__(self, chrome: webdriver.Chrome, url: str) -> None:
        self._chrome = chrome
        chrome.get(url)
        chrome.delete_all_cookies()
        chrome.get(url)
        chrome.find_element(By.NAME, "username").send_keys("ada")
        chrome.find_element(By.NAME, "password").send_keys(PASSWORD, Keys.ENTER)
        until(lambda: chrome.find_elements(By.NAME, "question"), 60)

    def ask(self, question: str) -> None:
        # A new page first reads the answers that it takes for running.
        until(self._chrome.find_element(By.NAME, "send").is_enabled, 60)
        self._chrome.find_element(By.NAME, "question").send_keys(question, Keys.ENTER)

    def stop(self) -> None:
        self._chrome.find_element(By.NAME, "stop").click()

    def shows(self, question: str, text: str, note: str) -> None:
        """Wait until the last answer is this one."""
        script = """
            const article = [...document.querySelectorAll("article")].at(-1);
            return article && [...article.children].map((element) => element.textContent);
        """
        try:
            until(lambda: self._chrome.execute_script(script) == [question, text, note], 60)
        except TimeoutError:
            assert self._chrome.execute_script(script) == [question, text, note]


@pytest.mark.server
def test_migrations_are_complete(migrated: Path) -> None:
    """The example's own tests are run with the commands of its guide: test_task_guides.py."""
    manage("makemigrations", "--check", "--dry-run", DATABASE=str(migrated))


@pytest.mark.server
def test_stopped_answer_aborts_its_upstream_and_is_saved(site: Site, upstream: ControlledUpstream) -> None:
    upstream.reset()
    with httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        headers = site.log_in(client)
        events: EventStream[object] = request_sse(f"{site.url}/answers", headers, {"question": "Think"}).events
        response = upstream.response()
        response.send_text("Hm")
        assert events.next(60) == {"text": "Hm"}
        events.close()
        if site.server == "runserver":
            # It does not expose its socket: a disconnect is noticed when something is sent.
            def is_noticed() -> bool:
                response.send_text("?")
                return response.request.aborted.is_set()

            until(is_noticed, 60)
        response.request.wait_aborted(60)
        page = client.get(f"{site.url}/").text
        key = page.rpartition('data-key="')[2].partition('"')[0]
        until(lambda: client.get(f"{site.url}/answers/{key}").json()["outcome"] == "disconnected", 60)
        assert client.get(f"{site.url}/answers/{key}").json()["text"].startswith("Hm")


@pytest.mark.server
@pytest.mark.browser
@pytest.mark.parametrize("site", ["gunicorn", "uvicorn"], indirect=True)
def test_page_in_a_browser(site: Site, upstream: ControlledUpstream, chrome: webdriver.Chrome) -> None:
    upstream.reset()
    page = ChatPage(chrome, site.url)
    page.ask("<b>One?</b>")
    upstream.response().send_text("one ", "<i>")
    upstream.response().end()
    page.shows("<b>One?</b>", "one <i>", "Complete")

    page.ask("Stop?")
    upstream.response(2).send_text("two")
    page.shows("Stop?", "two", "")
    page.stop()
    page.shows("Stop?", "two", "Stopped")
    upstream.response(2).request.wait_aborted(60)

    page.ask("Reload?")
    upstream.response(3).send_text("three")
    page.shows("Reload?", "three", "")
    chrome.refresh()
    page.shows("Reload?", "three", "Stopped")
    upstream.response(3).request.wait_aborted(60)

    page.ask("Fail?")
    upstream.response(4).cut()
    page.shows("Fail?", "", "The upstream's stream was cut off.")
    page.ask("Expired?")
    upstream.response(5).end()
    page.shows("Expired?", "", "Complete")
    chrome.delete_cookie("sessionid")
    page.ask("Who am I?")
    page.shows("Who am I?", "", "The server refused to answer.")
    chrome.get("about:blank")


@pytest.mark.server
@pytest.mark.browser
@pytest.mark.parametrize("site", ["gunicorn", "uvicorn"], indirect=True)
def test_page_with_answers_that_survive(site: Site, upstream: ControlledUpstream, chrome: webdriver.Chrome) -> None:
    upstream.reset()
    page = ChatPage(chrome, f"{site.url}/reload/")
    page.ask("Reload?")
    response = upstream.response()
    response.send_text("one, ")
    page.shows("Reload?", "one, ", "")
    chrome.refresh()
    page.shows("Reload?", "one, ", "")
    response.send_text("two")
    page.shows("Reload?", "one, two", "")
    response.end()
    page.shows("Reload?", "one, two", "Complete")
    chrome.refresh()
    page.shows("Reload?", "one, two", "Complete")

    page.ask("Stop?")
    upstream.response(2).send_text("three")
    page.shows("Stop?", "three", "")
    chrome.refresh()
    page.shows("Stop?", "three", "")
    page.stop()
    page.shows("Stop?", "three", "Stopped")
    upstream.response(2).request.wait_aborted(60)

    site.add_running_answer("Killed?")
    chrome.refresh()
    page.shows("Killed?", "", "Not finished")
    assert upstream.request_count == 2
    chrome.get("about:blank")


@pytest.mark.server
@pytest.mark.browser
@pytest.mark.parametrize("site", ["gunicorn"], indirect=True)
def test_stop_before_the_question_arrives(site: Site, upstream: ControlledUpstream, chrome: webdriver.Chrome) -> None:
    upstream.reset()
    page = ChatPage(chrome, f"{site.url}/reload/")
    chrome.execute_script(HELD_QUESTION)
    page.ask("Early?")
    page.shows("Early?", "", "")
    page.stop()
    until(lambda: chrome.execute_script("return window.refusedStops"), 60)
    chrome.execute_script("sendQuestion()")
    page.shows("Early?", "", "Stopped")
    upstream.response().request.wait_aborted(60)
    chrome.get("about:blank")


@pytest.mark.server
@pytest.mark.browser
@pytest.mark.parametrize("site", ["gunicorn", "uvicorn"], indirect=True)
def test_page_goes_on_after_a_lost_connection(
    site: Site, upstream: ControlledUpstream, chrome: webdriver.Chrome
) -> None:
    upstream.reset()
    with CuttingProxy(int(site.url.rpartition(":")[2]), most=None, seed=0) as proxy:
        page = ChatPage(chrome, f"http://127.0.0.1:{proxy.port}/reload/")
        page.ask("Lost?")
        response = upstream.response()
        response.send_text("one, ")
        page.shows("Lost?", "one, ", "")
        proxy.cut_all()
        until(lambda: proxy.cuts)
        response.send_text("two")
        page.shows("Lost?", "one, two", "")
        response.end()
        page.shows("Lost?", "one, two", "Complete")
        assert upstream.request_count == 1
        chrome.get("about:blank")


@pytest.mark.server
@pytest.mark.browser
def test_answer_of_a_killed_process_without_redis_starts_again(
    upstream: ControlledUpstream, chrome: webdriver.Chrome, migrated: Path, tmp_path: Path
) -> None:
    upstream.reset()
    variables = {**prepared(tmp_path, migrated, upstream), "SECRET_KEY": "the same for both processes"}
    with reserved_port() as port:
        with running(command_of("gunicorn", port), tmp_path, **variables) as program:
            program.wait_until_serving(f"http://127.0.0.1:{port}")
            page = ChatPage(chrome, f"http://127.0.0.1:{port}/reload/")
            page.ask("Survive?")
            upstream.response().send_text("Yes")
            page.shows("Survive?", "Yes", "")
            program.kill()
        # The new process does not know the last event ID of the page's POST (410).
        with running(command_of("gunicorn", port), tmp_path, **variables):
            upstream.response(2).send_text("No")
            page.shows("Survive?", "No", "")
            upstream.response(2).end()
            page.shows("Survive?", "No", "Complete")
            chrome.refresh()
            page.shows("Survive?", "No", "Complete")
            assert upstream.request_count == 2
            chrome.get("about:blank")


@pytest.mark.server
@pytest.mark.browser
@pytest.mark.redis
@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "shut down"])
def test_answer_of_a_process_that_ends_starts_again(
    upstream: ControlledUpstream, chrome: webdriver.Chrome, migrated: Path, tmp_path: Path, is_killed: bool
) -> None:
    upstream.reset()
    variables = {**prepared(tmp_path, migrated, upstream), "SECRET_KEY": "the same for both processes"}
    with redis_server() as redis, reserved_port() as port:
        variables["REDIS_URL"] = redis.url
        command = command_of("gunicorn" if is_killed else "uvicorn", port)
        if not is_killed:
            # uvicorn waits for open streams.
            command += ["--timeout-graceful-shutdown", "1"]
        with running(command, tmp_path, **variables) as program:
            program.wait_until_serving(f"http://127.0.0.1:{port}")
            page = ChatPage(chrome, f"http://127.0.0.1:{port}/reload/")
            page.ask("Survive?")
            upstream.response().send_text("Yes")
            page.shows("Survive?", "Yes", "")
            if is_killed:
                program.kill()
            else:
                program.process.terminate()
                program.wait()
            upstream.response().request.wait_aborted(60)
        # The page sends its POST again.
        with running(command_of("gunicorn", port), tmp_path, **variables):
            upstream.response(2).send_text("No")
            page.shows("Survive?", "No", "")
            upstream.response(2).end()
            page.shows("Survive?", "No", "Complete")
            assert upstream.request_count == 2
            chrome.get("about:blank")
