"""A Flask application that relays answers and saves them, whole or not: `python -m examples.saved_answers`.

`curl -N localhost:8000/ask?q=Hello` streams an answer of a local upstream, and `curl localhost:8000/answers` lists what
was saved. Leave the first one with Ctrl-C: the upstream is aborted, and the text so far is saved as "disconnected".
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from functools import partial
from typing import Any

import flask

from examples.endpoint import body, text_of
from sseqbridge import Timeout, relay, request_sse
from sseqbridge.relay import RelayEnd

__all__ = ["create_app"]


def create_app(upstream: str, database: str, *, read: float = 60, idle: float = 60) -> flask.Flask:
    """Return an application that relays the chat completions of `upstream` and saves them in a file of SQLite.

    An upstream without a response for `read` seconds, or without an event for `idle` seconds, is an error.
    """
    app = flask.Flask(__name__)
    relay.flask.register_error_handlers(app)

    def connection() -> contextlib.closing[sqlite3.Connection]:
        return contextlib.closing(sqlite3.connect(database, isolation_level=None))

    with connection() as opened:
        opened.execute("CREATE TABLE IF NOT EXISTS answers (question, text, outcome, error)")

    @app.get("/ask")
    def ask() -> flask.Response:
        question = flask.request.args["q"]
        parts: list[str] = []

        def on_item(chunk: dict[str, Any]) -> None:
            parts.append(text_of(chunk))

        def on_end(end: RelayEnd) -> None:
            error = None if end.error is None else str(end.error)
            with connection() as opened:
                row = question, "".join(parts), end.outcome, error
                opened.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", row)

        opens = partial(
            request_sse,
            upstream,
            data=body([{"role": "user", "content": question}]),
            timeout=Timeout(read=read, idle=idle),
            require_done=True,
        )
        return relay.flask.stream_response(opens, on_item=on_item, on_end=on_end)

    @app.get("/answers")
    def answers() -> flask.Response:
        with connection() as opened:
            rows = opened.execute("SELECT question, text, outcome, error FROM answers").fetchall()
        return flask.jsonify([dict(zip(("question", "text", "outcome", "error"), row, strict=True)) for row in rows])

    return app


def main() -> None:
    from sseqbridge.testing import SSEServer, chat_completions

    database = sys.argv[1] if len(sys.argv) > 1 else "answers.sqlite3"
    with SSEServer(chat_completions("This answer is saved, whole or in part. " * 5, delay=0.2)) as server:
        create_app(server.url, database).run(port=8000, threaded=True)


if __name__ == "__main__":
    main()
