"""Every SDK's stream from aimock, a mock of the providers' APIs (npm: @copilotkit/aimock)."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaks import shared
from tests.sdk.clients import SDK, SDKS
from tests.support import until

FIXTURES = {
    "fixtures": [
        {"match": {"userMessage": "Hello"}, "response": {"content": "Hello, world. " * 20}, "chunkSize": 7},
    ]
}


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a running aimock."""
    program = Path(sys.prefix) / "npm" / "node_modules" / ".bin" / "llmock"
    if not program.exists():
        pytest.skip(f"npm install --prefix {program.parents[2]} @copilotkit/aimock was not run")
    fixtures = tmp_path_factory.mktemp("aimock") / "fixtures.json"
    fixtures.write_text(json.dumps(FIXTURES), "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--fixtures", str(fixtures)]
    url = f"http://127.0.0.1:{port}"
    with shared(), subprocess.Popen([*command, "--log-level", "silent"], stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: _answers(url))
            yield url
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


@pytest.mark.parametrize("sdk", SDKS, ids=str)
def test_a_stream_is_read_to_its_end(sdk: SDK, mock: str) -> None:
    with sdk.client(mock) as client:
        for _ in range(3):
            assert "".join(sdk.texts(sdk.open(client))) == "Hello, world. " * 20


@pytest.mark.parametrize("sdk", [sdk for sdk in SDKS if sdk.is_closable], ids=str)
def test_a_stream_can_be_left(sdk: SDK, mock: str) -> None:
    with sdk.client(mock) as client:
        for _ in range(3):
            with sdk.open(client) as stream:
                for item in stream:
                    if sdk.text(item):
                        break
        assert "".join(sdk.texts(sdk.open(client))) == "Hello, world. " * 20
