"""A Flask application with a page that saves each answer, whole or not: `python -m examples.saved_answers [DATABASE]`.

http://127.0.0.1:8000/ asks the endpoint of the environment (endpoint.py), and shows the answers in the database, a file
of SQLite. Stop, or a closed tab, aborts the upstream's request; the text so far is saved as "disconnected".
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import flask

from examples import endpoint
from sseqbridge import SSEClient, Timeout, relay
from sseqbridge.relay import RelayEnd

__all__ = ["create_app"]

PAGE = Path(__file__).parent / "saved_answers.html"
MODULE = str(files("sseqbridge.relay") / "browser/relay.js")


def create_app(client: SSEClient[Any], database: str) -> flask.Flask:
    """Return an application that relays the chat completions of the client's API, and saves them."""
    app = flask.Flask(__name__)
    relay.flask.register_error_handlers(app)  # an upstream that cannot be reached: 502 or 504

    def connection() -> contextlib.closing[sqlite3.Connection]:
        return contextlib.closing(sqlite3.connect(database, isolation_level=None))

    with connection() as opened:
        opened.execute("CREATE TABLE IF NOT EXISTS answers (question, text, outcome, error)")

    @app.post("/ask")
    def ask() -> flask.Response:
        question = flask.request.get_json()["question"]
        parts: list[str] = []

        def on_item(chunk: dict[str, Any]) -> None:
            parts.append(endpoint.text_of(chunk))

        def on_end(end: RelayEnd) -> None:
            error = None if end.error is None else str(end.error)
            with connection() as opened:
                row = question, "".join(parts), end.outcome, error
                opened.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", row)

        data = endpoint.body([{"role": "user", "content": question}])
        call = client.call("chat/completions", data=data, require_done=True)
        return relay.flask.stream_response(call, map=item_of, on_item=on_item, on_end=on_end)

    @app.get("/answers")
    def answers() -> flask.Response:
        with connection() as opened:
            rows = opened.execute("SELECT question, text, outcome, error FROM answers").fetchall()
        return flask.jsonify([dict(zip(("question", "text", "outcome", "error"), row, strict=True)) for row in rows])

    @app.get("/")
    def page() -> flask.Response:
        return flask.send_file(PAGE)

    @app.get("/relay.js")
    def module() -> flask.Response:
        return flask.send_file(MODULE, "text/javascript")

    return app


def item_of(chunk: dict[str, Any]) -> dict[str, str] | None:
    """Return what the page gets for one chunk; None: nothing."""
    text = endpoint.text_of(chunk)
    return {"text": text} if text else None


def main() -> None:
    database = sys.argv[1] if len(sys.argv) > 1 else "answers.sqlite3"
    # A minute for the response's head, and between events.
    create_app(endpoint.client(timeout=Timeout(read=60, idle=60)), database).run(port=8000, threaded=True)


if __name__ == "__main__":
    main()
