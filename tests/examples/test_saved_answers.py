"""The example that saves answers."""

from __future__ import annotations

import sqlite3
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import flask
import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from examples import saved_answers
from examples.saved_answers import create_app
from sseqbridge import SSEClient
from sseqbridge.testing import SSEServer, chat_completions, cut, respond, send, silence
from tests.browser_support import chromium
from tests.local_servers import under_werkzeug
from tests.support import until

pytestmark = pytest.mark.slow


def served(server: SSEServer, directory: Path) -> Any:
    return under_werkzeug(create_app(SSEClient(server.url), str(directory / "answers")), joins_threads=True)


def chunk(text: str) -> dict[str, list[dict[str, dict[str, str]]]]:
    return {"choices": [{"delta": {"content": text}}]}


def test_answers_are_saved_whole_or_not(tmp_path: Path) -> None:
    with SSEServer() as server, served(server, tmp_path) as url:

        def saved() -> list[tuple[str, str, str]]:
            return [(row["question"], row["text"], row["outcome"]) for row in httpx.get(f"{url}/answers").json()]

        left = [send(chunk("H")), silence()]
        server.play(chat_completions("Hello!"), [send(chunk("Hel")), cut()], [respond(401)], left)
        for question in ("whole", "cut", "refused"):
            httpx.post(f"{url}/ask", json={"question": question})
        with httpx.stream("POST", f"{url}/ask", json={"question": "left"}) as response:
            assert any("text" in text for text in response.iter_text())
        until(lambda: len(saved()) == 4)
        assert saved() == [
            ("whole", "Hello!", "done"),
            ("cut", "Hel", "error"),
            ("refused", "", "error"),
            ("left", "H", "disconnected"),
        ]
        assert server.requests[-1].wait_aborted()


def test_unreachable_upstream_is_502(tmp_path: Path, closed_port: int) -> None:
    client = create_app(SSEClient(f"http://127.0.0.1:{closed_port}"), str(tmp_path / "answers")).test_client()
    assert client.post("/ask", json={"question": "Hello"}).status_code == 502
    [answer] = client.get("/answers").get_json()
    assert (answer["text"], answer["outcome"]) == ("", "error")


def test_program_asks_the_endpoint_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apps: list[flask.Flask] = []
    monkeypatch.setattr(flask.Flask, "run", lambda app, **_: apps.append(app))
    monkeypatch.setattr(sys, "argv", ["saved_answers", str(tmp_path / "answers")])
    with SSEServer(chat_completions("Hello!")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        saved_answers.main()
        client = apps[0].test_client()
        assert client.post("/ask", json={"question": "Hi"}).text.endswith("data: [DONE]\n\n")
        assert server.requests[0].path == "/chat/completions"
    assert [row["text"] for row in client.get("/answers").get_json()] == ["Hello!"]


TEXTS = 'return [...document.querySelectorAll("#answer, #note, li")].map((element) => element.textContent);'


@pytest.mark.browser
def test_page_shows_an_answer_and_those_that_were_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_save = threading.Event()

    class SlowConnection(sqlite3.Connection):
        def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
            if statement.startswith("INSERT"):
                assert may_save.wait(60)
            return super().execute(statement, *arguments)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=SlowConnection))
    with SSEServer() as server, served(server, tmp_path) as url, chromium() as chrome:

        def shows(answer: str, note: str, saved: list[str]) -> bool:
            texts: list[str] = chrome.execute_script(TEXTS)
            return texts == [answer, note, *saved]

        def ask(question: str) -> None:
            chrome.find_element(By.NAME, "question").send_keys(question, Keys.ENTER)

        chrome.get(url)
        until(lambda: shows("", "", []), 60)
        server.play(chat_completions("Hello!"))
        ask("One?")
        until(lambda: shows("Hello!", "Complete", []), 60)
        # The last event comes before the view saves the answer.
        may_save.set()
        rows = ["One? Hello! [done]"]
        until(lambda: shows("Hello!", "Complete", rows), 60)
        server.play([send(chunk("Hel")), cut()])
        ask("Two?")
        rows.append("Two? Hel [error]")
        until(lambda: shows("Hel", "The upstream's stream was cut off.", rows), 60)
        server.play([send(chunk("H")), silence()])
        ask("Three?")
        until(lambda: shows("H", "", rows), 60)
        chrome.find_element(By.NAME, "stop").click()
        server.requests[-1].wait_aborted(60)
        rows.append("Three? H [disconnected]")
        until(lambda: shows("H", "Stopped", rows), 60)
        ask("Four?")
        until(lambda: shows("H", "", rows), 60)
        # A closed tab.
        chrome.get("about:blank")
        server.requests[-1].wait_aborted(60)
        until(lambda: len(httpx.get(f"{url}/answers").json()) == 4, 60)
        chrome.get(url)
        until(lambda: shows("", "", [*rows, "Four? H [disconnected]"]), 60)
        chrome.get("about:blank")
