"""Relays as Flask responses. Needs the extra `flask`. All code runs in the view's thread, without shared state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flask

from ._disconnect import disconnect_flag
from ._frames import relay
from ._options import describe, relay_options
from ._response import event_stream_headers, read_refusal
from ._source import Upstream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import RelayKeywords

__all__ = ["stream_response"]


def stream_response(
    stream: Any, *, headers: Mapping[str, str] | None = None, **options: Unpack[RelayKeywords]
) -> flask.Response:
    """Return a response that streams to the client; a disconnect aborts the upstream.

    `stream` and the options are those of `relay.frames`. `map`, and an iterable, run in the request's context.
    `headers` are added to those of an event stream. If the upstream's status is not 200, the response is that of
    the option `refusal`.

    Raises UsageError for arguments that cannot work.
    """
    with Upstream(stream) as upstream:
        checked = relay_options("stream_response", options)
        merged = event_stream_headers(headers)
        environ = flask.request.environ if flask.has_request_context() else None
        upstream.check_synchronous()
        if (refused := upstream.refused) is not None:
            disconnected = disconnect_flag(environ, checked.probe)
            refusal = read_refusal(refused, checked.refusal, headers, disconnected)
            return flask.Response(refusal.body, refusal.status, refusal.headers)
        return flask.Response(relay(upstream, checked, environ), 200, merged)


describe(stream_response)
