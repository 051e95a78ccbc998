"""The views. Those that stream, of /chat and /panel, are each one call of `relay.flask.stream_response`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flask

from sseqbridge import SSEError, relay

from .upstream import Upstream, conversation, feed, is_from_elsewhere, piece_of, upstream_from_environment

__all__ = ["create_app"]

_STAND_IN = Path(__file__).parent / "static" / "fetch-event-source"
_FROM_NPM = Path("node_modules/@microsoft/fetch-event-source/lib/esm")


def create_app(upstream: Upstream | None = None) -> flask.Flask:
    """Return the application, on the upstream that the environment names where it is given none."""
    app = flask.Flask(__name__)
    asked = upstream or upstream_from_environment()
    modules = (_FROM_NPM if _FROM_NPM.is_dir() else _STAND_IN).resolve()

    @app.get("/")
    def page() -> flask.Response:
        return app.send_static_file("chat.html")

    @app.get("/chat")
    def chat_by_eventsource() -> flask.Response:
        """Answer one question. After a broken connection the browser asks again, and says what it has seen."""
        if is_from_elsewhere(flask.request.headers.get("Sec-Fetch-Site")):
            return refusal("ask from this site's own page", 403)
        prompt = flask.request.args.get("prompt", "")
        last_event_id = flask.request.headers.get("Last-Event-ID", "")
        messages = [{"role": "user", "content": prompt}]
        return relay.flask.stream_response(asked.ask(messages, last_event_id, reader_left()), map=piece_of)

    @app.post("/chat")
    def chat_by_fetch() -> flask.Response:
        """Answer a conversation. (A page of another site cannot post JSON here: browsers ask first, and get a no.)"""
        messages = conversation(flask.request.get_json())
        if messages is None:
            return refusal("send an object with a list of messages", 400)
        return relay.flask.stream_response(asked.ask(messages, cancel=reader_left()), map=piece_of)

    @app.get("/panel")
    def panel() -> flask.Response:
        return relay.flask.stream_response(feed(asked))

    @app.get("/fetch-event-source/<name>")
    def fetch_event_source_module(name: str) -> flask.Response:
        # npm's modules import each other without a suffix, as bundlers have it.
        return flask.send_from_directory(modules, f"{name.removesuffix('.js')}.js")

    @app.errorhandler(SSEError)
    def failed(error: SSEError) -> flask.Response:
        """Say that there is no answer at all. (An error within one is the relay's to tell.)"""
        app.logger.warning("%s: %s", type(error).__name__, error)
        return refusal("The upstream cannot be reached.", 502)

    def reader_left() -> Any:
        # For as long as the upstream has not begun to answer; after that the relay looks itself.
        return relay.reader_left(flask.request.environ)

    def refusal(message: str, status: int) -> flask.Response:
        response = flask.jsonify(error={"message": message})
        response.status_code = status
        return response

    return app
