"""Every SDK's stream from aimock, a mock of the providers' APIs (npm: @copilotkit/aimock)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sseqbridge import cancel_on
from tests.clock import FakeClock
from tests.leaks import shared
from tests.sdk.clients import SDK, SDKS
from tests.support import in_thread, is_waiting, reserved_port, until

TEXT = "Hello, world. " * 20
MATCH = {"userMessage": "Hello"}
ANSWER: dict[str, Any] = {"match": MATCH, "response": {"content": TEXT}, "chunkSize": 7}
# Its next event comes in three hours.
SILENT = {**ANSWER, "streamingProfile": {"ttft": 0, "tps": 1e-4}}
# Without the latency (ms) it is cut before its first byte is sent.
CUT = {**ANSWER, "truncateAfterChunks": 12, "latency": 1}
# The answer to the first request, with Retry-After.
BUSY = {
    "match": {**MATCH, "sequenceIndex": 0},
    "response": {"error": {"message": "slow down"}, "status": 429, "retryAfter": 0.01},
}

every_sdk = pytest.mark.parametrize("sdk", SDKS, ids=str)
closable_sdk = pytest.mark.parametrize("sdk", [sdk for sdk in SDKS if sdk.is_closable], ids=str)
retrying_sdk = pytest.mark.parametrize("sdk", [sdk for sdk in SDKS if sdk.is_retried], ids=str)


@dataclass(frozen=True)
class AIMock:
    """A running aimock."""

    url: str

    def answer(self, *fixtures: dict[str, Any]) -> str:
        """Answer with the first of the fixtures that matches. Returns the URL."""
        self._post("reset", {})
        self._post("fixtures", {"fixtures": fixtures})
        return self.url

    def requests(self) -> int:
        """Return the number of requests since `answer`."""
        with urllib.request.urlopen(f"{self.url}/__aimock/journal", timeout=30) as response:
            return len(json.load(response))

    def _post(self, path: str, value: Any) -> None:
        request = urllib.request.Request(
            f"{self.url}/__aimock/{path}", json.dumps(value).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=30).close()


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AIMock]:
    """The aimock of all tests."""
    program = Path(sys.prefix) / "npm" / "node_modules" / ".bin" / "llmock"
    if not program.exists():
        pytest.skip(f"npm install --prefix {program.parents[2]} @copilotkit/aimock was not run")
    fixtures = tmp_path_factory.mktemp("aimock") / "fixtures.json"
    fixtures.write_text(json.dumps({"fixtures": [ANSWER]}), "utf-8")
    with shared(), reserved_port() as port:
        command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--fixtures", str(fixtures)]
        url = f"http://127.0.0.1:{port}"
        with subprocess.Popen([*command, "--log-level", "silent"], stdout=subprocess.DEVNULL) as process:
            try:
                until(lambda: _answers(url))
                yield AIMock(url)
            finally:
                process.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/__aimock/journal", timeout=30):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except urllib.error.URLError:
        return False


@every_sdk
def test_a_stream_is_read_to_its_end(sdk: SDK, mock: AIMock) -> None:
    with sdk.client(mock.answer(ANSWER)) as client:
        for _ in range(3):
            assert "".join(sdk.texts(sdk.open(client))) == TEXT


@closable_sdk
def test_a_stream_can_be_left(sdk: SDK, mock: AIMock) -> None:
    with sdk.client(mock.answer(ANSWER)) as client:
        for _ in range(3):
            with sdk.open(client) as stream:
                for item in stream:
                    if sdk.text(item):
                        break
        assert "".join(sdk.texts(sdk.open(client))) == TEXT


@closable_sdk
def test_closing_a_silent_stream_frees_its_reader(sdk: SDK, mock: AIMock) -> None:
    with sdk.client(mock.answer(SILENT)) as client:
        stream = sdk.open(client)
        reading = in_thread(lambda: sdk.texts(stream))
        until(lambda: is_waiting(reading))
        stream.close()
        assert isinstance(reading.exception(30), sdk.aborted)


@every_sdk
def test_a_scope_ends_a_silent_stream(sdk: SDK, mock: AIMock) -> None:
    flag = threading.Event()

    def read() -> bool:
        with cancel_on(flag) as scope:
            sdk.texts(sdk.open(client))
        return scope.cancelled

    with sdk.client(mock.answer(SILENT)) as client:
        reading = in_thread(read)
        until(lambda: is_waiting(reading))
        flag.set()
        assert reading.result(30)


@every_sdk
def test_the_idle_limit_ends_a_silent_stream(sdk: SDK, mock: AIMock, clock: FakeClock) -> None:
    with sdk.client(mock.answer(SILENT), idle=30) as client:
        stream = sdk.open(client)
        reading = in_thread(lambda: sdk.texts(stream))
        clock.advance_until(reading.done)
        assert isinstance(reading.exception(), sdk.timed_out)


@retrying_sdk
def test_a_request_is_repeated_after_429(sdk: SDK, mock: AIMock) -> None:
    with sdk.client(mock.answer(BUSY, ANSWER)) as client:
        assert "".join(sdk.texts(sdk.open(client))) == TEXT
        assert mock.requests() == 2


@every_sdk
def test_a_stream_that_is_cut_raises(sdk: SDK, mock: AIMock) -> None:
    texts: list[str] = []
    with sdk.client(mock.answer(CUT), retries=0) as client:
        with pytest.raises(sdk.cut):
            texts.extend(sdk.text(item) or "" for item in sdk.open(client))
        assert "".join(texts) in TEXT
        assert texts
