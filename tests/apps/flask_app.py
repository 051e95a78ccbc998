"""Relays in Flask, with Flask-Compress configured to compress event streams too."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any

import flask
from flask_compress import Compress

from sseqbridge import RequestAbortedError, relay, request_sse
from tests.apps import GENERATORS, LARGE, relay_options, running_loop

app = flask.Flask(__name__)
app.config["COMPRESS_MIMETYPES"] = ["text/plain", "text/event-stream"]
app.config["COMPRESS_ALGORITHM"] = app.config["COMPRESS_ALGORITHM_STREAMING"] = ["gzip"]
Compress(app)


@app.get("/plain")
def plain() -> flask.Response:
    return flask.Response(LARGE, mimetype="text/plain")


@app.get("/nothing")
def nothing() -> str:
    return ""


@app.get("/relay")
def stream() -> flask.Response:
    query = flask.request.args
    return relay.flask.stream_response(request_sse(query["upstream"]), **relay_options(query))


@app.get("/function")
def function() -> flask.Response:
    query = flask.request.args
    return relay.flask.stream_response(partial(request_sse, query["upstream"]), **relay_options(query))


@app.get("/iterated")
def iterated() -> flask.Response:
    query = flask.request.args
    return relay.flask.stream_response((item for item in request_sse(query["upstream"]).events), **relay_options(query))


@app.get("/watched")
def watched() -> flask.Response:
    """Watch the client until the upstream's headers arrive."""
    query = flask.request.args
    disconnected = relay.reader_left(flask.request.environ, probe=float(query["probe"]))
    try:
        opened = request_sse(query["upstream"], cancel=disconnected)
    except RequestAbortedError:
        return flask.Response(status=204)
    return relay.flask.stream_response(opened)


@app.get("/<any(counting, endless, cancelling):name>")
def generated(name: str) -> flask.Response:
    query = flask.request.args
    return relay.flask.stream_response(GENERATORS[name](query), **relay_options(query))


@app.get("/loop")
def loop() -> dict[str, Any]:
    with closing(request_sse(flask.request.args["upstream"]).events) as events:
        return {"item": next(events), "loop": running_loop()}
