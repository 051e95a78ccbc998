"""Writer: encodes the items of one stream for the client.

Runs in the thread, or the task, that produces the items; nothing here is shared between threads.

Invariant: every frame parses back to the event that it was made from; an item for which that is impossible
is refused. The client gets an error's type and a fixed text, never the error's message, which names hosts.
"""

from __future__ import annotations

import contextvars
import inspect
import json
from collections.abc import Callable
from typing import Any

from sseqbridge._exceptions import BridgeClosedError, SSEError, UpstreamError, UsageError
from sseqbridge._runtime.callbacks import CallersFunction, contained
from sseqbridge._sse.encoder import encode, item_event, item_text
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge._sse.provider_errors import message_of, quoted

from ._options import RelayOptions, done_event
from ._upstream_errors import upstream_error_of

__all__ = ["CANCELLED", "HEARTBEAT", "Writer", "client_message", "notice", "shutdown_notice"]

# A comment without a blank line after it: some clients (fetch-event-source) take the blank line for an event.
HEARTBEAT = b":\n"

_MESSAGES = {
    "ConnectError": "no connection to the upstream",
    "ReadError": "the connection to the upstream broke",
    "TruncatedStreamError": "the upstream's stream was cut off",
    "ReconnectionError": "the upstream's stream was cut off",
    "ProtocolError": "the upstream's response could not be read",
    "StreamTimeoutError": "the upstream took too long",
    "BufferLimitError": "the upstream sent an event that is too large",
    "ContentTypeError": "the upstream's response is no event stream",
    "DecodeError": "the upstream sent data that could not be decoded",
    "StatusError": "the upstream refused the request",
    "UpstreamError": "the upstream reported an error",
    "BridgeClosedError": "the server is shutting down",
    "CallbackError": "the server failed while it made the stream",
    "ProducerLostError": "the answer was broken off",
    "EventsLostError": "earlier events are no longer kept",
    "StreamNotFoundError": "there is no such stream",
    "LogError": "the log of streams failed",
    "LogAccessError": "the log of streams failed",
    "LogFullError": "the log of streams is full",
    "LogUnavailableError": "the log of streams cannot be reached",
}


class Writer:
    """Encodes items and events as frames; a frame is b"" if nothing is sent for an item."""

    def __init__(self, options: RelayOptions) -> None:
        self._map = options["map"]
        self._on_item = options["on_item"]
        self._error = options["error"]
        self._done_event = done_event(options)
        self._forwards_done = options["done"] is True
        self._quotes_body = options["refusal"] == "pass"
        # The context of the view that made the relay; `map` and iterables run in it.
        self.context = contextvars.copy_context()
        # Each side writes its own field, then reads the other's: no call of `on_item` begins after end_observing().
        self._is_observing = self._is_over = False
        # The last event ID that the client holds, as far as the upstream set it.
        self._id = ""
        # The client's last event ID after all frames that were made so far.
        self.last_event_id = ""

    @property
    def is_observed(self) -> bool:
        """Whether the application sees the items."""
        return self._on_item is not None

    def observe(self, item: Any) -> None:
        """Call the application's function `on_item`, which there must be. Raises CallbackError if it raises."""
        assert self._on_item is not None
        # Before `_is_over` is read: see end_observing().
        self._is_observing = True
        try:
            if not self._is_over:
                self._call_on_item(self._on_item, item)
        finally:
            self._is_observing = False

    def _call_on_item(self, on_item: Callable[[Any], Any], item: Any) -> None:
        with contained("the function `on_item`"):
            result = self.context.run(on_item, item)
            if inspect.iscoroutine(result):
                result.close()
                raise UsageError("`on_item` must be a plain function, got one that returns a coroutine")

    def end_observing(self) -> bool:
        """Call `on_item` no more. Returns whether no call is under way in another thread, which iterates."""
        self._is_over = True
        return not self._is_observing

    @property
    def is_verbatim(self) -> bool:
        """Whether an upstream's events are forwarded unchanged."""
        return self._map is None

    def event(self, event: ServerSentEvent) -> bytes:
        """Return the frame of an upstream's event."""
        frame = encode(event)
        if not event.id and self._id:
            # An event without an `id` field would not reset the client's last event ID.
            frame = b"id:\n" + frame
            self.last_event_id = ""
        if event.id:
            self.last_event_id = event.id
        self._id = event.id
        return frame

    def heartbeat(self, event: ServerSentEvent) -> bytes:
        """Return the frame of an upstream's heartbeat, b"" for one that has neither a name nor an ID of its own.

        A page would take such an event for an item, whose data is no JSON.
        """
        return b"" if event.event == "message" and event.id == self._id else self.event(event)

    def item(self, item: Any, source: ServerSentEvent | None = None) -> bytes:
        """Return the frame of an item, through `map`; it takes the name and id of the event `source`.

        Raises UsageError for an item that cannot be sent, CallbackError for `on_item`, and the exceptions of `map`.
        """
        if self.is_observed and item is not None and type(item) is not Comment:
            self.observe(item)
        if self._map is not None and type(item) is not Comment:
            item = self.context.run(self._map, item)
        name = "a result of `map`" if self._map is not None else "an item of the stream"
        if source is not None and isinstance(item, (str, dict, list)):
            return self.event(ServerSentEvent(source.event, item_text(item, name), source.id, source.retry))
        frame = _encoded(item, name)
        # Made by the application: without an id of its own it leaves the client's last event ID unchanged.
        if isinstance(item, ServerSentEvent) and item.id:
            self.last_event_id = item.id
        return frame

    def error(self, error: BaseException) -> bytes:
        """Return the frame that reports an error to the client. Raises what the caller's function `error` raises."""
        if self._error is None:
            error = error if isinstance(error, SSEError) else upstream_error_of(error) or error
            if isinstance(error, BridgeClosedError):
                # The server ends, and not the stream alone: the client may connect again.
                return shutdown_notice()
            return encode(_error_event(error, quotes_body=self._quotes_body))
        # An exit of the function would end the server, and a StopIteration would make the relay look complete.
        function = "the function `error`"
        with contained(function, passes=Exception), CallersFunction(function, passes=BaseException):
            report = self.context.run(self._error, error)
        name = "a result of `error`"
        if isinstance(report, (str, dict, list)):
            return encode(ServerSentEvent("error", item_text(report, name)))
        return _encoded(report, name)

    def end(
        self,
        outcome: str | None,
        last: ServerSentEvent | None,
        done: ServerSentEvent | None,
        *,
        is_clean: bool = True,
    ) -> bytes:
        """Return the frame that follows the last item.

        `done` is the event that ended the upstream's stream, `last` the upstream's event before it. `is_clean`: the
        upstream has reported no error.
        """
        if outcome not in ("done", "eof"):
            return b""
        if self._done_event is not None:
            return encode(self._done_event) if is_clean else b""
        if done is None or not self._forwards_done:
            return b""
        if done.id != ("" if last is None else last.id):
            return self.event(done)
        # `done` has no id of its own, and `map` may have set other ids.
        return encode(ServerSentEvent(done.event, done.data, "", done.retry))


def client_message(error: SSEError) -> str:
    """Return the text about an error for the client."""
    return _MESSAGES.get(type(error).__name__, "the stream failed")


def _encoded(item: Any, name: str) -> bytes:
    event = item_event(item, name)
    return b"" if event is None else encode(event)


def _error_event(error: BaseException, *, quotes_body: bool) -> ServerSentEvent:
    """Return the event that reports the failure of a stream to the client.

    `quotes_body`: with the message of an error that is the upstream's whole body, a refusal with the status 200.

    Its form is one that the SDKs of OpenAI, Anthropic and others, and Vercel's, recognize as an error.
    """
    if isinstance(error, SSEError):
        kind, message = type(error).__name__, client_message(error)
    else:
        kind, message = "ServerError", "the server failed while it made the stream"
    if isinstance(error, UpstreamError) and (quotes_body or error.event is not None):
        reported = message_of(error.payload)
        message = message if reported is None else quoted(reported)
    return _report("error", kind, message)


def _report(name: str, kind: str, message: str, retry: float | None = None) -> ServerSentEvent:
    data = {
        "type": "error",
        "message": message,
        "errorText": message,
        "error": {"type": kind, "message": message},
    }
    return ServerSentEvent(name, json.dumps(data, separators=(",", ":")), retry=retry)


def notice(name: str, kind: str, message: str, retry: float | None = None) -> bytes:
    """Return the frame of an event `name` that ends a stream early, with the data of an error `kind`."""
    return encode(_report(name, kind, message, retry))


def shutdown_notice(retry: float | None = None) -> bytes:
    """Return the last frame of a stream that ends with the server; a client may reconnect after `retry` seconds."""
    return notice("shutdown", "ServerShutdown", "the server is shutting down", retry)


# The last frame of a stream that this application has ended: without it the client would take the stream for whole.
CANCELLED = notice("cancelled", "Cancelled", "the answer was cancelled")
