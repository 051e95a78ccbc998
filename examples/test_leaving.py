"""Tests with a web server: does a view abort its upstream when its client leaves? `pytest examples/test_leaving.py`.

A test client closes the view's response itself. A web server does so only when it notices that the client has left.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.serving import make_server

from examples.saved_answers import create_app
from sseqbridge import SSEClient
from sseqbridge.testing import SSEServer, send, silence

HELLO = send({"choices": [{"delta": {"content": "Hello"}}]})
HEAD = b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n"
REQUEST = HEAD + b'{"question": "Hi"}'


@pytest.fixture
def port(sse_server: SSEServer, tmp_path: Path) -> Iterator[int]:
    """The port of a web server with the application."""
    app = create_app(SSEClient(sse_server.url), str(tmp_path / "answers.sqlite3"))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield server.server_port
    server.shutdown()
    serving.join()
    server.server_close()


def test_client_that_leaves_a_silent_answer(sse_server: SSEServer, port: int) -> None:
    sse_server.play([HELLO, silence()])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as browser, browser.makefile("rb") as received:
        browser.sendall(REQUEST)
        assert any(b"Hello" in line for line in received)
        assert b"\n" in received  # the blank line: the server has nothing left to write
    sse_server.assert_aborted()


def test_client_that_leaves_before_the_head(sse_server: SSEServer, port: int) -> None:
    sse_server.play([silence()])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as browser:
        browser.sendall(REQUEST)
        sse_server.wait_for_request()
    sse_server.assert_aborted()
