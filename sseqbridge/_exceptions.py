"""The exceptions of the library, as one tree.

    SSEError                      base class: a stream, or the request for it, failed
    +- TransportError             the network, or the transport in its place, failed
    |  +- ConnectError            no connection: refused, name not found, TLS handshake, proxy
    |  +- ReadError               the connection broke: reset, aborted
    |  +- ProtocolError           the response is not valid HTTP, has an encoding that was not requested, or a body
    |  |                          that is no event stream
    |  +- TruncatedStreamError    the stream ended early
    +- StreamTimeoutError         a time limit elapsed; `which` names it
    +- RequestAbortedError        cancelled before the response's headers arrived
    +- ReconnectionError          the stream was lost and is not (or no longer) reconnected
    +- RedirectError              the upstream sent a redirect that is not followed
    +- ResponseError              the response is not an event stream; it has `status`, `headers`, `body`
    |  +- StatusError             its status is not 200, nor a 2xx of an event stream
    |  +- ContentTypeError        its status is 200, its type is not text/event-stream (nor that of JSON Lines)
    +- BufferLimitError           an event is larger than `max_event_bytes`
    +- EventError                 one event is at fault: `event`
    |  +- DecodeError             `decode` cannot decode the event's data
    |  +- UpstreamError           the upstream sent an error as an event, or in place of events
    +- EventsLostError            events that the reader has not received are no longer stored
    +- ProducerLostError          the process that wrote a log's stream died before the end of the stream
    +- LogError                   the log that stores streams failed
    |  +- LogUnavailableError     its store was unreachable for longer than the log tolerates
    |  +- LogAccessError          its store refuses the credentials or lacks a permission
    |  +- LogFullError            its store is out of memory
    |  +- StreamNotFoundError     the stream does not exist, or has expired
    +- CallbackError              code of the caller's raised
    +- BridgeClosedError          the bridge was closed, its loop thread ended, or the interpreter is exiting

    UsageError (a RuntimeError)   the call cannot work, whatever the network does
    Cancelled (a BaseException)   the surrounding scope was cancelled: see cancel_on

Messages never hold headers, request bodies, query strings or credentials. A message says what to do
where the caller can do something, and every fact in it is an attribute as well. Where a message quotes
text that the upstream sent, control characters are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import httpx

    from ._sse.events import ServerSentEvent

__all__ = [
    "BridgeClosedError",
    "BufferLimitError",
    "CallbackError",
    "Cancelled",
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

E = TypeVar("E", bound=BaseException)


class UsageError(RuntimeError):
    """Raised for a wrong argument, or a call that cannot work in this place. Never caused by the network.

    Correct the call; do not handle this error. The message says which argument, and what to pass.

    Example: `request_sse(url, timeout="3")` raises it.
    """


class SSEError(Exception):
    """Base class of all errors of a stream that was requested correctly.

    `stream_name` is the name of the stream if it was merged with others under names, else None.

        except SSEError as error:
            log.warning("stream failed: %s", error)
    """

    stream_name: Any = None


class TransportError(SSEError):
    """Raised if the network, or the HTTP transport in its place, failed. The cause is chained.

    `torn_line` is the begin of the line of JSON Lines that the end of the stream has cut off, a str, else None.

        except TransportError as error:
            show_partial_answer(error)
    """

    torn_line: str | None = None


class ConnectError(TransportError):
    """Raised if no connection could be made: refused, name not found, TLS handshake or proxy failed.

    `proxy_status` is the status with which a proxy refused to connect, an int, if that is the reason.

        except ConnectError as error:
            log.error("no connection: %s (proxy: %s)", error, error.proxy_status)
    """

    proxy_status: int | None = None


class ReadError(TransportError):
    """Raised if the connection broke while the request was sent or the response was read.

        except ReadError:
            keep_partial_answer()
    """


class ProtocolError(TransportError):
    """Raised if the response is not valid HTTP, or has a content encoding that was not requested.

    Also if the body of an event stream has none of the format's fields, and no comment. The message quotes its begin.

        except ProtocolError as error:
            log.error("not an event stream: %s", error)
    """


class TruncatedStreamError(TransportError):
    """Raised if the server, or a proxy, closed the connection before the end of the stream.

        except TruncatedStreamError:
            mark_as_incomplete()
    """


class StreamTimeoutError(SSEError):
    """Raised if a time limit of the stream elapsed.

    `which` is "connect", "read", "write", "idle" or "total". `seconds` is the limit, None if it is not known. `target`
    is the URL of the request, without credentials and query, "" if it is not known. `unit` is what the limit "idle"
    waits for: "event", or "document" of JSON Lines.

        except StreamTimeoutError as error:
            log.warning("limit %s elapsed after %s s", error.which, error.seconds)
    """

    def __init__(self, which: str, seconds: float | None, target: str = "", *, unit: str = "event") -> None:
        super().__init__(which, seconds, target)
        self.which = which
        self.seconds = seconds
        self.target = target
        self.unit = unit

    @property
    def description(self) -> str:
        """The text that names what did not happen in time, without the advice that str() adds."""
        silent = "comments" if self.unit == "event" else "blank lines"
        missing = {
            "connect": "no connection to the upstream",
            "read": "not a byte from the upstream",
            "write": "the upstream took no more of the request",
            "idle": f"no {self.unit} from the upstream ({silent} do not count)",
            "total": "the stream is not at its end",
        }[self.which]
        return missing if self.seconds is None else f"{missing} after {self.seconds:g} s"

    def __str__(self) -> str:
        option = "read" if self.which == "write" else self.which
        begin = f"{self.target}: " if self.target else ""
        return f"{begin}{self.description}; timeout=Timeout({option}=...) sets this limit"


class RequestAbortedError(SSEError):
    """Raised if `cancel` was set, or the stream was closed, before the response's headers arrived.

        except RequestAbortedError:
            return  # the user pressed Stop before the upstream answered
    """


class ReconnectionError(SSEError):
    """Raised if a stream was cut off and is not, or no longer, reconnected. The last failure is the cause.

    `attempts` is the number of consecutive attempts to reconnect, an int.

        except ReconnectionError as error:
            log.error("gave up after %d attempts: %s", error.attempts, error.__cause__)
    """

    def __init__(self, message: str, attempts: int) -> None:
        super().__init__(message, attempts)
        self.attempts = attempts

    def __str__(self) -> str:
        return str(self.args[0])


class RedirectError(SSEError):
    """Raised if the upstream sent a redirect that is not followed.

    `status` is the status of the redirect, an int.

        except RedirectError as error:
            log.error("redirect %d was not followed: %s", error.status, error)
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class ResponseError(SSEError):
    """Raised if the response is not an event stream.

    `status` is an int, `headers` an httpx.Headers. `body` is the decompressed body, as far as it arrived,
    at most 1 MiB.

        except ResponseError as error:
            log.error("%d: %s", error.status, error.text)
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
        """`body` as UTF-8 text, with U+FFFD for invalid bytes."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return `body` decoded as JSON. Raises ValueError (such as json.JSONDecodeError) if it is not JSON."""
        return json.loads(self.body)


class StatusError(ResponseError):
    """Raised if the status of the response is not 200, nor another 2xx whose type is text/event-stream.

    The message quotes the provider's, if the body has one.

        except StatusError as error:
            if error.status == 429:
                wait(error.headers.get("retry-after"))
    """


class ContentTypeError(ResponseError):
    """Raised if the status of the response is 200 and its Content-Type is not that of the format requested.

    That is text/event-stream for request_sse, and one of JSON Lines, or application/json, for request_jsonl.

        except ContentTypeError as error:
            log.error("answered %s", error.headers.get("content-type"))
    """


class BufferLimitError(SSEError):
    """Raised if one event is larger than `limit` bytes, the stream's `max_event_bytes`.

        except BufferLimitError as error:
            log.error("an event is larger than %d bytes", error.limit)
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"an event is larger than max_event_bytes={self.limit}; raise it to read this stream"


class EventError(SSEError):
    """Base class of errors that concern one event: `event`, a ServerSentEvent.

    For an UpstreamError it is None if the error came in place of events.

        except EventError as error:
            log.error("%s: %r", error, error.event)
    """

    event: ServerSentEvent | None

    def __init__(self, message: str, event: ServerSentEvent | None) -> None:
        super().__init__(message, event)
        self.event = event

    def __str__(self) -> str:
        return str(self.args[0])


class DecodeError(EventError):
    """Raised if `decode` cannot decode an event's data. The cause is chained.

        except DecodeError as error:
            log.error("not JSON: %r", error.event.data[:100])
    """

    event: ServerSentEvent


class UpstreamError(EventError):
    """Raised if the upstream sent an error as an event, or in place of events.

    `payload` is the event's data, decoded as JSON, or as text if it is not JSON. In place of events, the body of the
    response is a JSON error object: then that is `payload`, and `event` is None.

        except UpstreamError as error:
            show(error.payload)
    """

    def __init__(self, message: str, event: ServerSentEvent | None, payload: Any) -> None:
        super().__init__(message, event)
        self.payload = payload

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.event, self.payload)


class CallbackError(SSEError):
    """Raised if code of the caller's raised (a function, flag, iterator or HTTP client), or an `auth` never ends.

    The cause is the caller's exception. On an event loop it may be one that is not an Exception, such as SystemExit.

        except CallbackError as error:
            raise error.__cause__
    """


class EventsLostError(SSEError):
    """Raised if events that this reader has not received yet are no longer stored.

        except EventsLostError:
            reload_from_database()
    """


class ProducerLostError(SSEError):
    """Raised if the process that wrote a log's stream died before the end. The reader received all that it wrote.

        except ProducerLostError:
            offer_to_start_again()
    """


class LogError(SSEError):
    """Raised if the log that stores streams failed, or holds an entry that cannot be read.

    The cause is the store's own error, if there is one.

        except LogError as error:
            return "the log failed", 503
    """


class LogUnavailableError(LogError):
    """Raised if the log's store was unreachable, or refused all commands, for longer than the log tolerates.

        except LogUnavailableError:
            return "try again later", 503
    """


class LogAccessError(LogError):
    """Raised if the log's store refuses the credentials, or does not grant them a permission that a log needs.

        except LogAccessError as error:
            log.critical("check Redis's credentials: %s", error)
    """


class LogFullError(LogError):
    """Raised if the log's store is out of memory, so that nothing can be written.

        except LogFullError:
            alert("Redis is out of memory")
    """


class StreamNotFoundError(LogError):
    """Raised if no stream of this key was ever written, or if it has expired.

        except StreamNotFoundError:
            return "no such answer", 404
    """


class BridgeClosedError(SSEError):
    """Raised if the bridge of the stream was closed, its loop thread ended, or the interpreter is exiting.

        except BridgeClosedError:
            return  # the application shuts down
    """


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that it stands for, outermost first.

    The error that was handled when it was raised counts as its cause, as a traceback shows it, unless it is one of
    Python's own types: a NameError in the handler of an error has another cause.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        is_new = link.__suppress_context__ or type(link).__module__ == "builtins"
        link = link.__cause__ or (None if is_new else link.__context__)


def bridge_error_of(error: BaseException) -> BridgeClosedError | None:
    """Return the BridgeClosedError that has led to `error`, as to an error of an SDK; None if there is none."""
    return next((cause for cause in causes_of(error) if isinstance(cause, BridgeClosedError)), None)


class Cancelled(BaseException):
    """Raised in code whose scope was cancelled: a block of `cancel_on`, a relay's iterable, the `start` of a log.

    Not an Exception, like asyncio.CancelledError: code that handles or retries after errors must not handle it.
    Let it pass; the scope swallows it.

        except Cancelled:
            release_lock()
            raise
    """


def members_of(error: object) -> tuple[BaseException, ...]:
    """Return the errors of which a group consists, none for any other error."""
    try:
        # By the attribute: Python 3.10 has no class of groups.
        members = getattr(error, "exceptions", None)
    except Exception:
        # A property of another class, which must not replace the error.
        return ()
    return members if isinstance(members, tuple) else ()


def is_cancellation(error: BaseException | None) -> bool:
    """Whether an error is Cancelled, or a group of nothing else, as asyncio.TaskGroup raises it."""
    members = members_of(error)
    return all(map(is_cancellation, members)) if members else isinstance(error, Cancelled)


def copy_error(error: E) -> E:
    """Return a copy for one of several readers: raising an error changes its traceback and context.

    Also of a subclass whose constructor has other parameters, which copy.copy() cannot copy. An error that cannot
    be copied at all is returned itself.
    """
    kind = type(error)
    try:
        own = kind.__new__(kind, *error.args)
        own.__dict__.update(error.__dict__)
    except Exception:
        return error
    own.__cause__ = error.__cause__
    return own.with_traceback(error.__traceback__)
