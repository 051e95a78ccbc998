"""The views. Those that stream, of /chat and /panel, are each one call of `relay.flask.stream_response`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flask

from examples.flask_chat.answers import log_from_environment
from examples.flask_chat.upstream import (
    Message,
    Upstream,
    conversation,
    feed,
    is_from_elsewhere,
    piece_of,
    upstream_from_environment,
)
from sseqbridge import EventsLostError, LogError, SSEError, UsageError, relay
from sseqbridge.resume import Log

__all__ = ["create_app"]

_STAND_IN = Path(__file__).parent / "static" / "fetch-event-source"
_FROM_NPM = Path("node_modules/@microsoft/fetch-event-source/lib/esm")


def create_app(upstream: Upstream | None = None, log: Log | None = None) -> flask.Flask:
    """Return the application, on the upstream and the log that the environment names where it is given none."""
    app = flask.Flask(__name__)
    asked = upstream or upstream_from_environment()
    kept = log or log_from_environment()
    modules = (_FROM_NPM if _FROM_NPM.is_dir() else _STAND_IN).resolve()

    @app.get("/")
    def page() -> flask.Response:
        return app.send_static_file("chat.html")

    @app.get("/chat")
    def chat_by_eventsource() -> flask.Response:
        """Answer one question. After a broken connection the browser asks again, and says what it has seen."""
        if is_from_elsewhere(flask.request.headers.get("Sec-Fetch-Site")):
            return refusal("ask from this site's own page", 403)
        arguments = flask.request.args
        # A page that was reloaded has it, too, and no way to send the header.
        last_event_id = flask.request.headers.get("Last-Event-ID") or arguments.get("last_event_id", "")
        return answer([{"role": "user", "content": arguments.get("prompt", "")}], last_event_id)

    @app.post("/chat")
    def chat_by_fetch() -> flask.Response:
        """Answer a conversation. (A page of another site cannot post JSON here: browsers ask first, and get a no.)"""
        messages = conversation(flask.request.get_json())
        if messages is None:
            return refusal("send an object with a list of messages", 400)
        return answer(messages, flask.request.headers.get("Last-Event-ID", ""))

    @app.delete("/chat")
    def stop() -> tuple[str, int]:
        """End an answer that is kept, for whoever reads it. (One that is not ends with its reader.)"""
        if kept is not None:
            kept.cancel(flask.request.args.get("key", ""))
        return "", 204

    def answer(messages: list[Message], last_event_id: str) -> flask.Response:
        key = flask.request.args.get("key")
        if kept is None or key is None:
            stream: Any = asked.ask(messages, last_event_id, reader_left())
        else:
            # What the upstream says goes into the log, whoever leaves, also before it has begun. Where the process dies
            # that has asked, the next one to read asks anew.
            stream = kept.open(key, lambda: asked.ask(messages), last_event_id=last_event_id, takeover=True)
        return relay.flask.stream_response(stream, map=piece_of)

    @app.get("/panel")
    def panel() -> flask.Response:
        return relay.flask.stream_response(feed(asked, keeps_answers=kept is not None))

    @app.get("/fetch-event-source/<name>")
    def fetch_event_source_module(name: str) -> flask.Response:
        # npm's modules import each other without a suffix, as bundlers have it.
        return flask.send_from_directory(modules, f"{name.removesuffix('.js')}.js")

    @app.errorhandler(SSEError)
    def failed(error: SSEError) -> flask.Response:
        """Say that there is no answer at all. (An error within one is the relay's to tell.)"""
        app.logger.warning("%s: %s", type(error).__name__, error)
        if isinstance(error, EventsLostError):
            return refusal("This answer is not kept any more.", 410)
        if isinstance(error, LogError):
            return refusal("The answers cannot be reached.", 503)
        return refusal("The upstream cannot be reached.", 502)

    @app.errorhandler(UsageError)
    def misused(error: UsageError) -> flask.Response:
        app.logger.warning("UsageError: %s", error)
        return refusal("send the key that the page was given", 400)

    def reader_left() -> Any:
        # For as long as the upstream has not begun to answer; after that the relay looks itself.
        return relay.reader_left(flask.request.environ)

    def refusal(message: str, status: int) -> flask.Response:
        response = flask.jsonify(error={"message": message})
        response.status_code = status
        return response

    return app
