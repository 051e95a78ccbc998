"""The views. Each view that streams (/chat and /panel) is one call of `relay.flask.stream_response`."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from typing import Any

import flask

from examples.flask_chat.answers import log_from_environment
from examples.flask_chat.upstream import (
    Message,
    Upstream,
    conversation,
    feed,
    is_cross_site,
    piece_of,
    upstream_from_environment,
)
from sseqbridge import EventsLostError, LogError, SSEError, UsageError, relay
from sseqbridge.resume import Log

__all__ = ["create_app"]


def create_app(upstream: Upstream | None = None, log: Log | None = None) -> flask.Flask:
    """Return the application. By default the environment selects its upstream and its log."""
    app = flask.Flask(__name__)
    endpoint = upstream or upstream_from_environment()
    answers = log or log_from_environment()

    @app.get("/")
    def page() -> flask.Response:
        return app.send_static_file("chat.html")

    @app.get("/static/relay.js")
    def module() -> flask.Response:
        return flask.send_file(str(files("sseqbridge.relay") / "browser/relay.js"), "text/javascript")

    @app.get("/chat")
    def chat_by_eventsource() -> flask.Response:
        """Answer one question. After a lost connection the browser requests the rest, with Last-Event-ID."""
        if flask.request.method == "HEAD":
            return flask.Response(mimetype="text/event-stream")
        if is_cross_site(flask.request.headers.get("Sec-Fetch-Site")):
            return refusal("only pages of this site may request answers", 403)
        arguments = flask.request.args
        # A reloaded page has the ID too, but EventSource cannot send it as a header.
        last_event_id = flask.request.headers.get("Last-Event-ID") or arguments.get("last_event_id", "")
        return answer([{"role": "user", "content": arguments.get("prompt", "")}], last_event_id)

    @app.post("/chat")
    def chat_by_fetch() -> flask.Response:
        """Answer a conversation. (A page of another site cannot post JSON: the browser's CORS preflight is refused.)"""
        messages = conversation(flask.request.get_json())
        if messages is None:
            return refusal("send an object with a list of messages", 400)
        return answer(messages, flask.request.headers.get("Last-Event-ID", ""))

    @app.delete("/chat")
    def stop() -> tuple[str, int]:
        """End an answer in the log for all readers. (An answer that is not kept ends with its reader's connection.)"""
        if answers is not None and not answers.cancel(flask.request.args.get("key", "")):
            flask.abort(404)
        return "", 204

    def answer(messages: list[Message], last_event_id: str) -> flask.Response:
        key = flask.request.args.get("key")
        if answers is None or key is None:
            # The relay calls the function when the response starts: not for HEAD. If the client leaves, it cancels the
            # call.
            stream: Any = partial(endpoint.ask, messages, last_event_id)
        else:
            # The upstream's stream goes into the log, even if all readers disconnect. If the process of the request
            # dies, the next reader sends the request again.
            start = partial(endpoint.ask, messages)
            stream = answers.open(key, start, last_event_id=last_event_id, takeover=True)
        return relay.flask.stream_response(stream, map=piece_of)

    @app.get("/panel")
    def panel() -> flask.Response:
        return relay.flask.stream_response(feed(endpoint, keeps_answers=answers is not None))

    @app.errorhandler(SSEError)
    def failed(error: SSEError) -> flask.Response:
        """Report that there is no answer. (The relay reports an error within an answer.)"""
        app.logger.warning("%s: %s", type(error).__name__, error)
        if isinstance(error, EventsLostError):
            return refusal("This answer is not kept any more.", 410)
        if isinstance(error, LogError):
            return refusal("The answers cannot be reached.", 503)
        return refusal("The upstream cannot be reached.", 502)

    @app.errorhandler(UsageError)
    def misused(error: UsageError) -> flask.Response:
        app.logger.warning("UsageError: %s", error)
        return refusal("send a key that the page has generated", 400)

    def refusal(message: str, status: int) -> flask.Response:
        response = flask.jsonify(error={"message": message})
        response.status_code = status
        return response

    return app
