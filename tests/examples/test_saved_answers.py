"""The example that saves answers."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from examples.saved_answers import create_app
from sseqbridge.testing import SSEServer, chat_completions, cut, respond, send, silence
from tests.local_servers import under_werkzeug
from tests.support import until

pytestmark = pytest.mark.slow


def chunk(text: str) -> dict[str, list[dict[str, dict[str, str]]]]:
    return {"choices": [{"delta": {"content": text}}]}


def test_answers_are_saved_whole_or_not(tmp_path: Path) -> None:
    with SSEServer() as server, under_werkzeug(create_app(server.url, str(tmp_path / "answers"))) as url:

        def saved() -> list[tuple[str, str, str]]:
            return [(row["question"], row["text"], row["outcome"]) for row in httpx.get(f"{url}/answers").json()]

        left = [send(chunk("H")), silence()]
        server.play(chat_completions("Hello!"), [send(chunk("Hel")), cut()], [respond(401)], left)
        for question in ("whole", "cut", "refused"):
            httpx.get(f"{url}/ask", params={"q": question})
        with httpx.stream("GET", f"{url}/ask", params={"q": "left"}) as response:
            assert any("choices" in text for text in response.iter_text())
        until(lambda: len(saved()) == 4)
        assert saved() == [
            ("whole", "Hello!", "done"),
            ("cut", "Hel", "error"),
            ("refused", "", "error"),
            ("left", "H", "disconnected"),
        ]
        assert server.requests[-1].wait_aborted()


def test_unreachable_upstream_is_502(tmp_path: Path, closed_port: int) -> None:
    client = create_app(f"http://127.0.0.1:{closed_port}", str(tmp_path / "answers")).test_client()
    assert client.get("/ask?q=Hello").status_code == 502
    [answer] = client.get("/answers").get_json()
    assert (answer["text"], answer["outcome"]) == ("", "error")
