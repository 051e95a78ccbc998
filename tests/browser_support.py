"""Support for tests of whole pages: web servers as programs, an upstream that the test controls, and Chromium."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, respond, send, wait
from tests.examples.commands import documented
from tests.support import ROOT, reserved_port, until

__all__ = [
    "FLASK_CHAT",
    "HELD_QUESTION",
    "ControlledResponse",
    "ControlledUpstream",
    "Page",
    "Program",
    "chromium",
    "npm_directory",
    "running",
]

# Prefixes of environment variables that the examples or Python read.
_VARIABLES = ("KEEP_ANSWERS", "OPENAI_", "PYTHON", "REDIS_URL")
# JavaScript that keeps questions back until `sendQuestion()`, and counts the refusals of a Stop before.
HELD_QUESTION = """
const send = window.fetch;
const question = new Promise((resolve) => (window.sendQuestion = resolve));
window.refusedStops = 0;
window.fetch = async (url, options) => {
    if (options.body) {
        await question;
        return send(url, { ...options, signal: undefined });
    }
    const response = await send(url, options);
    if (response.status === 404) window.refusedStops += 1;
    return response;
};
"""
FLASK_CHAT = [*documented("python -m examples.flask_chat").words, "--port"]


class Program:
    """A program that serves, and its output so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for_output(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches `pattern`, and return the match."""
        until(lambda: re.search(pattern, self.output) or self.process.poll() is not None, 60)
        match = re.search(pattern, self.output)
        assert match, f"the program ended; its output:\n{self.output}"
        return match

    def wait_until_serving(self, url: str) -> None:
        """Wait until the program answers a request."""

        def is_serving() -> bool:
            assert self.process.poll() is None, self.output
            try:
                httpx.get(url)
            except httpx.TransportError:
                # Leave the core to the program.
                time.sleep(0.01)
                return False
            return True

        until(is_serving, 60)

    def kill(self) -> None:
        """Kill the program and its child processes, like a crash."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.wait()

    def wait(self) -> int:
        """Wait for the end of the program, and return its exit status."""
        status = self.process.wait(60)
        self._reading.join(30)
        return status


@contextmanager
def running(command: Sequence[str], cwd: Path = ROOT, **variables: str) -> Iterator[Program]:
    """Run a program that serves, with these environment variables instead of those that the examples read."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_VARIABLES)}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **variables}
    # A killed program leaves its temporary files.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary, subprocess.Popen(
        command, cwd=cwd, env={**environment, "TMPDIR": temporary}, text=True, encoding="utf-8",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        program = Program(process)
        try:
            yield program
        finally:
            program.kill()


class ControlledResponse:
    """The response to one request, which the test sends step by step."""

    def __init__(self, request: ReceivedRequest) -> None:
        self.request = request
        self._steps: deque[Step | None] = deque()
        self._count = int(request.headers.get("last-event-id", 0))

    def send_text(self, *texts: str) -> None:
        """Send each text as a chunk of a chat completion, with its number as id."""
        for text in texts:
            self._count += 1
            # A short reconnection time for the test.
            self.send({"choices": [{"delta": {"content": text}}]}, id=str(self._count), retry=0.05)

    def send(self, data: object, id: str | None = None, retry: float | None = None) -> None:
        self._steps.append(send(data, id=id, retry=retry))

    def end(self) -> None:
        self._steps.extend((send("[DONE]"), None))

    def cut(self) -> None:
        self._steps.append(cut())

    def steps(self) -> Iterator[Step]:
        yield respond()
        while True:
            if not self._steps:
                yield wait(0.002)
            elif (step := self._steps.popleft()) is not None:
                yield step
            else:
                return


class ControlledUpstream:
    """An upstream whose responses the test sends step by step."""

    def __init__(self) -> None:
        self._responses: list[ControlledResponse] = []
        # Sent to the next requests, instead of steps of the test.
        self.script: Iterable[Step] | None = None
        self.server = SSEServer(self._play)

    def _play(self, request: ReceivedRequest) -> Iterator[Step]:
        response = ControlledResponse(request)
        self._responses.append(response)
        yield from response.steps() if self.script is None else self.script

    def __enter__(self) -> ControlledUpstream:
        self.server.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.server.close()

    @property
    def base_url(self) -> str:
        return f"{self.server.url}/v1"

    @property
    def request_count(self) -> int:
        """The number of requests received so far."""
        return len(self._responses)

    def response(self, number: int = 1) -> ControlledResponse:
        """Wait for a request, counted from 1, and return its response."""
        until(lambda: len(self._responses) >= number, 60)
        return self._responses[number - 1]

    def reset(self) -> None:
        """Drop all requests and responses, for the next test."""
        self._responses.clear()
        self.script = None


def npm_directory() -> Path:
    """Return the directory with npm's @microsoft/fetch-event-source, or skip the test."""
    directory = Path(sys.prefix) / "npm"
    if not (directory / "node_modules/@microsoft/fetch-event-source").is_dir():
        pytest.skip(f"npm install --prefix {directory} @microsoft/fetch-event-source was not run")
    return directory


# Chromium itself must send nothing past loopback: no name lookups, no background requests. (It connects a UDP socket to
# detect IPv6, and sends nothing on it.)
_ON_LOOPBACK = (
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-client-side-phishing-detection",
    "--disable-component-extensions-with-background-pages",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-first-run",
    "--no-pings",
)
_IN_A_CONTAINER = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
# One process for all pages and for drawing them: new ones for each page take a third of the CPU time.
_CHEAP = ("--renderer-process-limit=1", "--in-process-gpu")
_WITHOUT_FEATURES = (
    # Their requests leave loopback.
    "AutofillServerCommunication",
    "CertificateTransparencyComponentUpdater",
    "MediaRouter",
    "OptimizationHints",
    "Translate",
    # They start processes.
    "PreloadTopChromeWebUI",
    "SpareRendererForSitePerProcess",
    "WebUIOmniboxAimPopup",
    "WebUIOmniboxFullPopup",
    "WebUIOmniboxPopup",
)
_KEEPING_LEFT_PAGES = ("BackForwardCache", "ProactivelySwapBrowsingInstance")


@contextmanager
def chromium(*, keeps_left_pages: bool = False) -> Iterator[webdriver.Chrome]:
    """A headless Chromium from Debian. Skips the test without it.

    With `keeps_left_pages` it starts a process for each page, as it does for users, so that it can go back to a page as
    the page was.
    """
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--window-size=1280,900", "--lang=en", *_ON_LOOPBACK, *_IN_A_CONTAINER, *_CHEAP):
        options.add_argument(argument)
    without = [*_WITHOUT_FEATURES, *([] if keeps_left_pages else _KEEPING_LEFT_PAGES)]
    options.add_argument(f"--disable-features={','.join(without)}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Chromium leaves files behind. Selenium itself would choose a port that another process may get first.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory, reserved_port() as port:
        service = Service(driver, port=port, env={**os.environ, "TMPDIR": directory})
        chrome = webdriver.Chrome(options, service)
        try:
            yield chrome
        finally:
            chrome.quit()


class Page:
    """The chat page in a browser."""

    def __init__(self, chrome: webdriver.Chrome, url: str, way: str = "fetch") -> None:
        self.chrome = chrome
        self.url = url
        chrome.get(url)
        # The panel gets its figures from an event stream.
        until(lambda: self.count("open") == 0, 60)
        if not self.find(f"input[value={way}]").is_selected():
            self.find(f"input[value={way}] + span").click()

    def find(self, selector: str) -> WebElement:
        return self.chrome.find_element(By.CSS_SELECTOR, selector)

    def run(self, script: str, *args: Any) -> Any:
        """Run JavaScript, and return its result. Waits for a promise."""
        return self.chrome.execute_script(script, *args)

    def ask(self, question: str) -> None:
        self.find("#prompt").send_keys(question, Keys.ENTER)

    def stop(self) -> None:
        self.find("#stop").click()

    def count(self, name: str) -> int | None:
        """Return a figure of the panel, None before it is shown."""
        text = self.find(f"#{name}").text
        return int(text) if text.isdigit() else None

    def _read_answer(self, expression: str) -> Any:
        script = "const answer = [...document.querySelectorAll('.answer')].at(-1); return answer && "
        return self.run(script + expression)

    @property
    def answer(self) -> str:
        """The text of the last answer so far."""
        text: str = self._read_answer("answer.querySelector('.text').textContent") or ""
        return text

    @property
    def state(self) -> str | None:
        """The state of the last answer: waiting, streaming, reconnecting, done, stopped or failed."""
        state: str | None = self._read_answer("answer.dataset.state")
        return state

    @property
    def error(self) -> str:
        """The visible error of the last answer, "" without one."""
        error: str = self._read_answer("answer.querySelector('.error:not([hidden]) p')?.textContent") or ""
        return error

    def wait_for_answer(self, answer: str, state: str) -> None:
        """Wait until the last answer has this text and state."""
        try:
            until(lambda: (self.answer, self.state) == (answer, state), 60)
        except TimeoutError:
            assert (self.answer, self.state, self.error) == (answer, state, "")
