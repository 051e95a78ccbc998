"""The view in Flask: `gunicorn -k gthread --threads 100 examples.sdk_chat.flask_app:app`."""

from __future__ import annotations

from functools import partial

import flask
from flask.typing import ResponseReturnValue

from sseqbridge import relay

from .providers import ERRORS, PROVIDERS, refusal

app = flask.Flask(__name__)


@app.get("/plain")
def plain() -> str:
    return "Ask /openai?prompt=... or /anthropic?prompt=..."


@app.get("/<any(openai, anthropic):name>")
def answer(name: str) -> flask.Response:
    """Relay an SDK's stream. A client that leaves aborts it, while it is silent and before it has begun."""
    provider = PROVIDERS[name]
    ask = partial(provider.ask, flask.request.args["prompt"])
    return relay.flask.stream_response(ask, map=provider.text, done="[DONE]")


def failed(error: Exception) -> ResponseReturnValue:
    """Answer an error of an SDK before the stream. (A relay reports later errors as an event.)"""
    app.logger.warning("%s", type(error).__name__)
    status, headers = refusal(error)
    return {"error": {"message": "The upstream refused the request, or cannot be reached."}}, status, headers


for error in ERRORS:
    app.register_error_handler(error, failed)
