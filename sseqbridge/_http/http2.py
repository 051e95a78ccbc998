"""Closing one stream of an HTTP/2 connection that other streams share.

httpcore, the HTTP/2 implementation of httpx and httpx2, forgets an aborted stream and sends no RST_STREAM: the server
would continue to send, and the stream would count as open forever. Runs on the event loop's thread.
"""

from __future__ import annotations

import traceback
from typing import Any

import anyio

__all__ = ["abort_before_response", "reset_stream"]

# The error code CANCEL (RFC 9113, section 7).
_CANCEL = 8

_SECONDS = 1.0


async def reset_stream(response: Any) -> bool:
    """Close the stream of a response. Returns False if its transport offers no way to do so.

    Does nothing if the server has ended the stream already.
    """
    connection = _connection_of(response.stream)
    stream_id = response.extensions.get("stream_id")
    if connection is None or stream_id is None:
        return False
    await _reset(connection, stream_id, response.request)
    return True


async def abort_before_response(error: BaseException, request: Any) -> None:
    """Close the stream of a request that was cancelled by `error` before its response, if it was sent over HTTP/2.

    Nothing but the error's traceback leads to the connection.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        connection, stream_id = frame.f_locals.get("self"), frame.f_locals.get("stream_id")
        if isinstance(stream_id, int) and _is_connection(connection):
            await _reset(connection, stream_id, request)
            return


def _is_connection(candidate: Any) -> bool:
    state = getattr(candidate, "_h2_state", None)
    return hasattr(state, "reset_stream") and hasattr(candidate, "_write_outgoing_data")


def _connection_of(stream: Any) -> Any:
    """Return httpcore's connection below the streams that wrap each other, None if there is none."""
    seen: list[Any] = [stream]
    # httpx's client, its transport, httpcore's pool and httpcore's response each add one.
    for candidate in seen:
        inner = [value for name, value in getattr(candidate, "__dict__", {}).items() if name in _WRAPPED]
        for value in inner:
            if _is_connection(value):
                return value
        if len(seen) < _MAX_WRAPPERS:
            seen += inner
    return None


# The attributes that hold the next stream, or the connection.
_WRAPPED = frozenset({"stream", "_stream", "_httpcore_stream", "_connection"})
_MAX_WRAPPERS = 20


async def _reset(connection: Any, stream_id: int, request: Any) -> None:
    # The caller's task may be cancelled already.
    with anyio.move_on_after(_SECONDS, shield=True):
        try:
            connection._h2_state.reset_stream(stream_id, error_code=_CANCEL)
            await connection._write_outgoing_data(request)
        except Exception:
            # The server, or the end of the connection, has closed the stream before.
            return
