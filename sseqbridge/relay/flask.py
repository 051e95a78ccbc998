"""Relays as Flask responses. Needs the extra `flask`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flask

from sseqbridge._sse.events import ServerSentEvent

from ._disconnect import reader_left_of
from ._frames import relayed
from ._response import event_stream_headers, is_refused, refusal_of
from ._source import abort_on_error
from ._writer import RelayOptions

__all__ = ["stream_response"]


def stream_response(
    stream: Any,
    *,
    heartbeat: float | None = 15.0,
    probe: float | None = 1.0,
    map: Callable[[Any], Any] | None = None,
    done: bool | str | ServerSentEvent | None = True,
    headers: Mapping[str, str] | None = None,
) -> flask.Response:
    """Return a response that streams to the reader; who leaves stops the upstream.

    `stream`, `heartbeat`, `probe`, `map` and `done` are as `relay.frames` has them; `map`, and an
    iterable, find the request's context. `headers` are added to those of an event stream.

    Where the upstream did not answer 200 the response has its status and body instead.

    Raises UsageError for arguments that cannot be.
    """
    with abort_on_error(stream):
        options = RelayOptions(heartbeat, probe, map, done)
        merged = event_stream_headers(headers)
        environ = flask.request.environ if flask.has_request_context() else None
        if is_refused(stream):
            refusal = refusal_of(stream, headers, reader_left_of(environ, probe))
            return flask.Response(refusal.body, refusal.status, refusal.headers)
        return flask.Response(relayed(stream, options, environ), 200, merged)
