"""The views, which start the task and read its log. They do not know the upstream."""

from __future__ import annotations

import secrets
from functools import partial

import flask
from kombu.exceptions import OperationalError

from examples.celery_worker.tasks import answer, log
from sseqbridge import EventsLostError, LogError, ProducerLostError, SSEError, StreamNotFoundError, UsageError, relay

__all__ = ["create_app"]

# Seconds for which a reader waits until a worker begins the stream.
_WAIT = 5.0

_STATUSES: dict[type[Exception], int] = {
    UsageError: 400,  # The key in the URL is invalid.
    StreamNotFoundError: 404,
    EventsLostError: 410,
    ProducerLostError: 502,
    LogError: 503,
    OperationalError: 503,  # From the broker, which is the same Redis.
    SSEError: 502,  # From the upstream, passed on by the worker.
}


def create_app() -> flask.Flask:
    """Return the application."""
    app = flask.Flask(__name__)

    @app.post("/ask")
    def ask() -> tuple[dict[str, str], int]:
        body = flask.request.get_json()
        if not isinstance(body, dict) or not isinstance(body.get("prompt"), str):
            flask.abort(400)
        # The key permits reading the answer, so it must be unguessable.
        key = secrets.token_urlsafe()
        answer.delay(key, body["prompt"])
        return {"key": key}, 202

    @app.get("/answers/<key>")
    def read(key: str) -> flask.Response:
        last_event_id = flask.request.headers.get("Last-Event-ID")
        return relay.flask.stream_response(partial(log.open, key, last_event_id=last_event_id, wait=_WAIT))

    @app.delete("/answers/<key>")
    def stop(key: str) -> tuple[str, int]:
        """End an answer for all readers; 404 if no worker has begun it."""
        return "", 204 if log.cancel(key) else 404

    @app.errorhandler(UsageError)
    @app.errorhandler(SSEError)
    @app.errorhandler(OperationalError)
    def failed(error: Exception) -> tuple[dict[str, str], int]:
        app.logger.warning("%s: %s", type(error).__name__, error)
        status = next(status for kind, status in _STATUSES.items() if isinstance(error, kind))
        return {"error": type(error).__name__}, status

    return app
