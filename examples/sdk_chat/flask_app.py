"""The view in Flask: `gunicorn -k gthread --threads 64 examples.sdk_chat.flask_app:app`."""

from __future__ import annotations

import logging

import flask
from flask.typing import ResponseReturnValue

from sseqbridge import cancel_on, relay

from .providers import ERRORS, PROVIDERS

app = flask.Flask(__name__)
logger = logging.getLogger(__name__)


@app.get("/plain")
def plain() -> str:
    return "Ask /openai?prompt=... or /anthropic?prompt=..."


@app.get("/<any(openai, anthropic):name>")
def answer(name: str) -> ResponseReturnValue:
    """Relay an SDK's stream. A reader who leaves aborts it, while it is silent and before it has begun."""
    provider = PROVIDERS[name]
    # The scope covers the wait for the upstream's headers. The relay watches the reader from then on.
    with cancel_on(relay.reader_left(flask.request.environ)):
        try:
            stream = provider.ask(flask.request.args["prompt"])
        except ERRORS as error:
            logger.warning("%s: %s", name, type(error).__name__)
            return {"error": {"message": "The upstream refused the request, or cannot be reached."}}, 502
        return relay.flask.stream_response(stream, map=provider.text, done="[DONE]")
    return "", 499
