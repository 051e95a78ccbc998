"""Relays as Flask responses. Needs the extra `flask`. All code runs in the view's thread, without shared state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flask

from sseqbridge._sse.events import ServerSentEvent

from ._disconnect import disconnect_flag
from ._frames import relay
from ._options import RelayOptions
from ._response import event_stream_headers, read_refusal
from ._source import Upstream

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
    """Return a response that streams to the client; a disconnect aborts the upstream.

    `stream` and the options are those of `relay.frames`. `map`, and an iterable, run in the request's context.
    `headers` are added to those of an event stream.

    If the upstream's status is not 200, the response has its status and body instead.

    Raises UsageError for arguments that cannot work.
    """
    with Upstream(stream) as upstream:
        options = RelayOptions(heartbeat, probe, map, done)
        merged = event_stream_headers(headers)
        environ = flask.request.environ if flask.has_request_context() else None
        upstream.check_synchronous()
        if (refused := upstream.refused) is not None:
            refusal = read_refusal(refused, headers, disconnect_flag(environ, probe))
            return flask.Response(refusal.body, refusal.status, refusal.headers)
        return flask.Response(relay(upstream, options, environ), 200, merged)
