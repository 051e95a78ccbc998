"""Tests of saved_answers.py, as an application has them: `pytest examples/test_saved_answers.py`.

The fixture `sse_server` comes with sseqbridge. It is the upstream: a real server on a loopback port.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from examples.saved_answers import create_app
from sseqbridge import SSEClient, Timeout
from sseqbridge.testing import SSEServer, chat_completions, cut, respond, send, silence

HELLO = send({"choices": [{"delta": {"content": "Hello"}}]})
HI = {"question": "Hi"}


@pytest.fixture
def limits() -> Timeout:
    """The limits of the view; a test has others by `parametrize`."""
    return Timeout(read=60, idle=60)


@pytest.fixture
def client(sse_server: SSEServer, limits: Timeout, tmp_path: Path) -> FlaskClient:
    return create_app(SSEClient(sse_server.url, timeout=limits), str(tmp_path / "answers.sqlite3")).test_client()


def saved(client: FlaskClient) -> Any:
    [answer] = client.get("/answers").get_json()
    return answer["text"], answer["outcome"]


def test_complete_answer(sse_server: SSEServer, client: FlaskClient) -> None:
    sse_server.play(chat_completions("Hello, Ada."))
    assert client.post("/ask", json=HI).text.endswith("data: [DONE]\n\n")
    assert sse_server.requests[0].json()["messages"] == [{"role": "user", "content": "Hi"}]
    assert saved(client) == ("Hello, Ada.", "done")


def test_refusal(sse_server: SSEServer, client: FlaskClient) -> None:
    sse_server.play([respond(401, json={"error": {"message": "wrong key"}})])
    with client.post("/ask", json=HI) as response:  # closed at the end, as by a web server
        assert response.status_code == 502
        assert "wrong key" not in response.get_data(as_text=True)
    assert saved(client) == ("", "error")


@pytest.mark.parametrize("limits", [Timeout(read=0.2)])
def test_silent_upstream(sse_server: SSEServer, client: FlaskClient) -> None:
    sse_server.play([silence()])  # before the head of its response
    with client.post("/ask", json=HI) as response:
        assert response.status_code == 504
    assert saved(client) == ("", "error")


@pytest.mark.parametrize("limits", [Timeout(idle=0.2)])
def test_stalled_upstream(sse_server: SSEServer, client: FlaskClient) -> None:
    sse_server.play([HELLO, silence()])
    assert "StreamTimeoutError" in client.post("/ask", json=HI).text
    assert saved(client) == ("Hello", "error")
    sse_server.assert_aborted()


@pytest.mark.parametrize("ending", [[cut()], []], ids=["cut", "without its end"])
def test_truncated_answer(sse_server: SSEServer, client: FlaskClient, ending: list[Any]) -> None:
    sse_server.play([HELLO, *ending])
    assert "TruncatedStreamError" in client.post("/ask", json=HI).text
    assert saved(client) == ("Hello", "error")


def test_client_that_leaves(sse_server: SSEServer, client: FlaskClient) -> None:
    sse_server.play([HELLO, silence()])
    response = client.post("/ask", json=HI)
    assert b"Hello" in next(piece for piece in response.response if b"data" in piece)
    response.close()  # a web server does the same when the client leaves
    sse_server.assert_aborted()  # did the view abort its upstream?
    assert saved(client) == ("Hello", "disconnected")
