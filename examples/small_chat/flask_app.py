"""The views in Flask."""

from __future__ import annotations

from functools import partial

import flask

from examples import endpoint
from examples.small_chat.answers import MODULE, PAGE, STYLE, WAIT, item_of, log
from sseqbridge import StreamNotFoundError, relay

app = flask.Flask(__name__)
relay.flask.register_error_handlers(app)  # an upstream that cannot be reached: 502 or 504


@app.post("/answers/<key>")
def ask(key: str) -> flask.Response:
    """Begin an answer. The request goes on when the client leaves."""
    body = flask.request.get_json()
    if not isinstance(body, dict) or not isinstance(body.get("question"), str):
        flask.abort(400)
    messages = [{"role": "user", "content": body["question"]}]
    last_event_id = flask.request.headers.get("Last-Event-ID")
    events = log.open(key, partial(endpoint.ask, messages), last_event_id=last_event_id, takeover=True)
    return relay.flask.stream_response(events, map=item_of)


@app.get("/answers/<key>")
def answer(key: str) -> flask.Response:
    """Read an answer from its beginning, or after the event that the client has seen."""
    last_event_id = flask.request.headers.get("Last-Event-ID")
    opens = partial(log.open, key, last_event_id=last_event_id, wait=WAIT)
    return relay.flask.stream_response(opens, map=item_of)


@app.delete("/answers/<key>")
def stop(key: str) -> tuple[str, int]:
    """End an answer, and its upstream request, for all its readers; 404 if it is not running."""
    return "", 204 if log.cancel(key) else 404


@app.get("/")
def page() -> flask.Response:
    return flask.send_file(PAGE)


@app.get("/relay.js")
def module() -> flask.Response:
    return flask.send_file(MODULE, "text/javascript")


@app.get("/page.css")
def style() -> flask.Response:
    return flask.send_file(STYLE)


@app.errorhandler(StreamNotFoundError)
def unknown(error: StreamNotFoundError) -> tuple[dict[str, str], int]:
    return {"error": "There is no such answer."}, 404
