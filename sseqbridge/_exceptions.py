"""All that can go wrong, as one tree.

    SSEError                      anything that went wrong with a stream
    +- TransportError             the network, or what stands in for it
    |  +- ConnectError            no connection: refused, name not found, TLS, proxy
    |  +- ReadError               the connection broke: reset, aborted
    |  +- ProtocolError           what came is not HTTP, or an encoding nobody asked for
    |  +- TruncatedStreamError    the stream ended before its end
    +- StreamTimeoutError         a time limit passed; `which` says what was waited for
    +- RequestAbortedError        cancelled before the response's headers were in
    +- ReconnectionError          a stream that was lost: not, or no longer, reconnected
    +- RedirectError              a redirect that is not followed
    +- ResponseError              an answer that is no event stream: status, headers, body
    |  +- StatusError             a status other than 200
    |  +- ContentTypeError        200 with another type than text/event-stream
    +- BufferLimitError           an event larger than `max_event_bytes`
    +- EventError                 one event's data; it is in `event`
    |  +- DecodeError             the data is not what `decode` takes
    |  +- UpstreamError           the upstream sent an error as an event
    +- EventsLostError            events that are not kept any more
    +- ProducerLostError          who wrote a log's stream is gone, in the midst of it
    +- LogError                   the log that streams are kept in
    |  +- LogUnavailableError     not to be reached, for longer than was to be ridden out
    |  +- LogAccessError          it refuses the credentials, or what they may do
    |  +- LogFullError            it has no memory left
    |  +- StreamNotFoundError     nobody writes the stream that was asked for
    +- CallbackError              code that the caller passed in raised
    +- BridgeClosedError          the loop thread is gone

    UsageError (a RuntimeError)   the call is wrong, whatever the network does

Rule: messages hold no header, request body, query string or credentials, and say what to do
where the caller can do something. Facts are attributes too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from ._sse.events import ServerSentEvent

__all__ = [
    "BridgeClosedError",
    "BufferLimitError",
    "CallbackError",
    "ConnectError",
    "ContentTypeError",
    "DecodeError",
    "EventError",
    "EventsLostError",
    "LogAccessError",
    "LogError",
    "LogFullError",
    "LogUnavailableError",
    "ProducerLostError",
    "ProtocolError",
    "ReadError",
    "ReconnectionError",
    "RedirectError",
    "RequestAbortedError",
    "ResponseError",
    "SSEError",
    "StatusError",
    "StreamNotFoundError",
    "StreamTimeoutError",
    "TransportError",
    "TruncatedStreamError",
    "UpstreamError",
    "UsageError",
]


class UsageError(RuntimeError):
    """The library was called in a way that cannot work. No network fault is behind it."""


class SSEError(Exception):
    """The base of everything that can go wrong with a stream that was asked for correctly.

    `stream_name` is the stream's name where it was one of several that were merged, else None.
    """

    stream_name: Any = None


class TransportError(SSEError):
    """The network failed, or the transport that stands in for it. The cause is chained."""


class ConnectError(TransportError):
    """No connection could be made: refused, name not found, TLS handshake or proxy failed."""


class ReadError(TransportError):
    """The connection broke while the request was sent or the answer was read."""


class ProtocolError(TransportError):
    """What came over the connection is not the HTTP that was agreed on."""


class TruncatedStreamError(TransportError):
    """The stream ended before its end: cut off by the server, or by something between."""


class StreamTimeoutError(SSEError):
    """A time limit of the stream passed.

    `which` is "connect", "read", "write", "idle" or "total"; `seconds` is the limit.
    """

    def __init__(self, which: str, seconds: float | None) -> None:
        super().__init__(which, seconds)
        self.which = which
        self.seconds = seconds

    def __str__(self) -> str:
        told = {
            "connect": "no connection to the upstream",
            "read": "not a byte from the upstream",
            "write": "the upstream took no more of the request",
            "idle": "no event from the upstream (comments do not count)",
            "total": "the stream is not at its end",
        }[self.which]
        option = "read" if self.which == "write" else self.which
        limit = "" if self.seconds is None else f" after {self.seconds:g} s"
        return f"{told}{limit}; timeout=Timeout({option}=...) sets this limit"


class RequestAbortedError(SSEError):
    """`cancel` was set, or the stream closed, before the response's headers were in."""


class ReconnectionError(SSEError):
    """The stream was cut off, and is not (or no longer) reconnected. What cut it off last is the cause.

    `attempts` is how often that was tried in a row, an int.
    """

    def __init__(self, message: str, attempts: int) -> None:
        super().__init__(message, attempts)
        self.attempts = attempts

    def __str__(self) -> str:
        return str(self.args[0])


class RedirectError(SSEError):
    """The upstream sent a redirect that is not followed.

    `status` is the answer's status, an int.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class ResponseError(SSEError):
    """An answer that is no event stream.

    `status` is an int, `headers` an httpx.Headers, `body` the bytes of the answer, decompressed,
    at most 1 MiB of them, and as far as they came.
    """

    def __init__(self, message: str, status: int, headers: httpx.Headers, body: bytes) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = body

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.status, self.headers, self.body)

    @property
    def text(self) -> str:
        """`body` as UTF-8 text, bad bytes as U+FFFD."""
        return self.body.decode("utf-8", "replace")


class StatusError(ResponseError):
    """The upstream answered with a status other than 200."""


class ContentTypeError(ResponseError):
    """The upstream answered 200 with something other than an event stream."""


class BufferLimitError(SSEError):
    """One event is larger than `limit` bytes, the stream's `max_event_bytes`."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"an event is larger than max_event_bytes={self.limit}; raise it to read this stream"


class EventError(SSEError):
    """One event is at fault; it is in `event`, a ServerSentEvent."""

    def __init__(self, message: str, event: ServerSentEvent) -> None:
        super().__init__(message, event)
        self.event = event

    def __str__(self) -> str:
        return str(self.args[0])


class DecodeError(EventError):
    """An event's data is not what `decode` takes. The cause is chained."""


class UpstreamError(EventError):
    """The upstream sent an error as an event.

    `payload` is the decoded JSON, or the text where it is no JSON.
    """

    def __init__(self, message: str, event: ServerSentEvent, payload: Any) -> None:
        super().__init__(message, event)
        self.payload = payload

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.event, self.payload)


class CallbackError(SSEError):
    """Code that the caller passed in raised (a function, a flag, an iterator, an HTTP client), or an `auth` never ends.

    The cause is its exception. On an event loop that may also be SystemExit, for example, which is no Exception.
    """


class EventsLostError(SSEError):
    """Events that this reader was still to be given are not kept any more."""


class ProducerLostError(SSEError):
    """The process that wrote a log's stream is gone, in the midst of it. What it had written was given."""


class LogError(SSEError):
    """The log that streams are kept in failed, or holds an entry that cannot be read.

    The cause is the store's own error, where it has one.
    """


class LogUnavailableError(LogError):
    """The log's store could not be reached, or refused all work, for longer than was to be ridden out."""


class LogAccessError(LogError):
    """The log's store refuses the credentials, or does not let them do what a log needs."""


class LogFullError(LogError):
    """The log's store has no memory left: nothing can be written."""


class StreamNotFoundError(LogError):
    """Nobody writes, or wrote, the stream that was asked for: there never was one, or it has expired."""


class BridgeClosedError(SSEError):
    """The bridge that the stream ran on was closed, or its loop thread ended."""
