"""One request as an async iterator of batches: send, follow redirects, check, read.

With _http/client.py this is all that knows httpx. It knows no thread and no consumer: who iterates it
decides where it runs. A `Exchange` is made in the caller's thread (so that a wrong argument is
an error of the call) and from then on belongs to the loop's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import httpx

from sseqbridge._exceptions import (
    CallbackError,
    ConnectError,
    ContentTypeError,
    ProtocolError,
    ReadError,
    RedirectError,
    SSEError,
    StatusError,
    StreamTimeoutError,
    TransportError,
    TruncatedStreamError,
    UsageError,
)
from sseqbridge._http.bounded_bodies import BODY_SECONDS, MAX_BODY_BYTES, is_cut, unbounded_stream
from sseqbridge._http.client import parsed_url
from sseqbridge._http.connection import BODY_EXTENSION, WORDS_OF_A_LATE_CLOSE, BodyStream
from sseqbridge._http.content_encoding import BodyDecoder, body_decoder
from sseqbridge._http.request import DEFAULT_HEADERS, check_raw_headers
from sseqbridge._runtime import loops, sockets
from sseqbridge._runtime.callbacks import CallersCode, original
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge._sse.parser import EventStreamParser

if TYPE_CHECKING:
    from sseqbridge._http.client import ClientPool
    from sseqbridge._http.connection import Sink
    from sseqbridge._http.request import RequestOptions

__all__ = [
    "EVENT_OVERHEAD",
    "MAX_BODY_BYTES",
    "Batch",
    "Body",
    "Exchange",
    "Head",
    "Resumption",
    "describe",
    "made_head",
    "status_error",
]

logger = logging.getLogger("sseqbridge")

# What is read after `[DONE]` so that the connection can be used again.
_DRAIN_BYTES = 64 * 1024

# What an event costs besides its text: the object, its strings' headers, its place in a list.
EVENT_OVERHEAD = 256

# How much is parsed without giving anything, or of one read, before others get their turn.
_SLICES_AT_A_TIME = 8
_SLICES_OF_A_READ = 32

_NO_MORE: Any = object()

# Where code of the caller's may run between a request and its answer.
_CLIENT = "the HTTP client, its transport, hooks or auth"

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PERMANENT_REDIRECTS = frozenset({301, 308})
_MAX_REDIRECTS = 20
# What goes along to another origin: nothing of the caller's that could be a credential.
_CROSS_ORIGIN_HEADERS = frozenset({"accept", "last-event-id"})
# By which a RemoteProtocolError says that the peer is gone: HTTP/1.1 in the body, in the line of a
# chunk's size and before the head, then HTTP/2's RST_STREAM and GOAWAY.
_WORDS_OF_A_CLOSE = (
    "peer closed connection",
    "peer unexpectedly closed",
    "disconnected",
    "StreamReset",
    "ConnectionTerminated",
)
_BODY_HEADERS = frozenset({"content-encoding", "content-language", "content-type"})


class Head(NamedTuple):
    """An answer's head."""

    status: int
    headers: httpx.Headers
    http_version: str


def made_head(status: int, headers: Mapping[str, str]) -> Head:
    """Return the head of an answer that no connection gave."""
    return Head(status, httpx.Headers(headers), "HTTP/1.1")


Item = ServerSentEvent | Comment


@dataclass(slots=True)
class Batch:
    """What a part of the body held: items, how many of them are events, what they are charged,
    and where they leave the stream."""

    items: list[Item]
    events: int
    charge: int
    last_event_id: str
    retry: float | None

    def absorb(self, later: Batch) -> None:
        """Add what came right after."""
        self.items += later.items
        self.events += later.events
        self.charge += later.charge
        self.last_event_id, self.retry = later.last_event_id, later.retry


class Body(NamedTuple):
    """The body of an answer that is no event stream, and why it is not whole, if it is not."""

    content: bytes
    error: BaseException | None = None


class Resumption(NamedTuple):
    """Where a connection leaves its stream for the next one, which sends `last_event_id`, "" for none.

    `retry` is the reconnection time that the server asked for, in seconds; `redirects` are those
    that are for good, as (status, URL).
    """

    last_event_id: str = ""
    retry: float | None = None
    redirects: tuple[tuple[int, Any], ...] = ()


class Exchange:
    """One request, from its sending to its answer's last byte.

    `open()` sends it; iterating gives Batches, or one Body where the status is not 200.
    `outcome` is "done" or "eof" once the stream has ended; `received` counts the body's bytes and
    `events` its events.
    """

    # As of a stream that has no other; see ReconnectingExchange.
    bounds_its_opening = False
    reconnections = 0
    opened_at = 0.0

    def __init__(self, clients: ClientPool, options: RequestOptions, resumption: Resumption | None = None) -> None:
        """Build the request. Raises UsageError for arguments that no request can be built of."""
        resumption = resumption or Resumption(options.last_event_id)
        self._clients = clients
        self._options = options
        self._redirects = resumption.redirects
        # As the caller named it: with a client that has a base_url it may be relative.
        self._origin = _origin_of(options.url)
        self._client = clients.lease(self._origin)
        try:
            self._request = self._build(resumption.last_event_id)
        except UsageError:
            clients.put_back(self._client)
            raise
        self._send_options = options.send
        self._response: Any = None
        self._body: BodyStream | _Pulled | None = None
        # Who takes batches without waiting, and what _take_in has left for __anext__.
        self._put: Callable[[Batch], bool] | None = None
        self._pending: Batch | None = None
        self._failure: Exception | None = None
        # What is still to be parsed of the last read, where anything is.
        self._parsing: Iterator[Batch | None] | None = None
        self._decoder: BodyDecoder | None = None
        self._network_stream: Any = None
        self._drain_left: int | None = None
        self._complete = False
        self._uncharged = 0
        # So that a batch is a small part of what is buffered, of the smallest events too.
        self._slice_bytes = min(max(options.max_buffered_bytes // 16, 512), 64 * 1024)
        self._batch_items = max(options.max_buffered_bytes // (4 * EVENT_OVERHEAD), 1)
        self._parser = EventStreamParser(
            max_event_bytes=options.max_event_bytes,
            comments=options.comments,
            last_event_id=resumption.last_event_id,
        )
        self._parser.retry = resumption.retry
        # Whether the HTTP client refused to send the request, for what the request is.
        self.is_unsendable = False
        self.outcome: str | None = None
        # By whose data the stream was ended, as the parser gave it; None where it was not.
        self.done_event: ServerSentEvent | None = None
        # Whether the body came to its own end, its last event or none.
        self.ended_cleanly = False
        self.received = 0
        self.events = 0

    @property
    def is_direct(self) -> bool:
        """Whether the request goes through the library's own transport alone."""
        return "auth" not in self._send_options and self._client.is_direct(self._request)

    @property
    def is_complete(self) -> bool:
        """Whether the body's end is known to be in."""
        return isinstance(self._body, BodyStream) and self._body.complete

    @property
    def target(self) -> str:
        """The URL that is asked, as messages may show it."""
        return describe(self._request.url)

    @property
    def resumption(self) -> Resumption:
        """Where the stream stands now."""
        return Resumption(self._parser.last_event_id, self._parser.retry, self._redirects)

    def _build(self, last_event_id: str) -> Any:
        options, package = self._options, self._client.package
        timeout = options.timeout
        # As bytes: httpx takes text in ASCII only.
        headers = [(name.encode(), value.encode("latin-1")) for name, value in options.headers]
        if last_event_id:
            # In UTF-8, as WHATWG has it. Blanks at its ends no header can carry.
            headers.append((b"Last-Event-ID", last_event_id.encode().strip(b" \t")))
        fault: type[Exception] | None = None
        try:
            request = self._client.build(
                options.method,
                options.url,
                headers,
                timeout=(timeout.connect, timeout.read, timeout.read, timeout.connect),
                **options.build,
            )
        except Exception as exc:
            fault = type(exc)
        # Out here, so that nothing is chained: the cause may quote the URL or the body.
        if fault is package.InvalidURL:
            raise UsageError("url is no valid http:// or https:// URL")
        if fault is not None:
            raise UsageError(f"no request can be built of these arguments: {fault.__name__}")
        # Once more: the cookies are among them now, and what the client adds.
        check_raw_headers(request.headers.raw)
        if request.url.scheme not in ("http", "https") or not request.url.host:
            raise UsageError("url is no http:// or https:// URL with a host: does it begin with one of these?")
        if (request.url.port or 0) > 65535:
            raise UsageError("url is no http:// or https:// URL with a port up to 65535")
        return request

    # Sending.

    async def open(self) -> Head:
        """Send the request, follow redirects, and return the head of the answer.

        Raises ContentTypeError for a 200 of another type than text/event-stream, and what
        `_translated` makes of the transport's errors.
        """
        for status, url in self._redirects:
            await self._follow(self._redirected(status, url))
        is_for_good = True
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._response = await self._send()
            status = response.status_code
            if status not in _REDIRECTS or self._options.follow_redirects is False:
                return await self._checked(response)
            url = self._location(response)
            redirected = self._redirected(status, url)
            await self._close_response()
            await self._follow(redirected)
            is_for_good = is_for_good and status in _PERMANENT_REDIRECTS
            if is_for_good:
                self._redirects += ((status, url),)
        raise RedirectError(f"{self.target}: more than {_MAX_REDIRECTS} redirects", response.status_code)

    def _is_unsendable(self, exc: Exception) -> bool:
        """Whether the HTTP client refuses the request itself, so that it would refuse it again.

        An h2 error counts as one of the connection: httpx raises the same type where the server breaks HTTP/2.
        """
        if not isinstance(exc, self._client.package.LocalProtocolError):
            return False
        return not any(type(link).__module__.partition(".")[0] == "h2" for link in _chain(exc))

    async def _send(self) -> Any:
        try:
            with CallersCode(_CLIENT, passes=Exception):
                response = await self._client.send(self._request, **self._send_options)
        except SSEError:
            raise
        except Exception as exc:
            error = original(exc)
            self.is_unsendable = isinstance(error, Exception) and self._is_unsendable(error)
            raise self._translated(error) from error
        self._clients.learn(self._origin, response.http_version)
        self._network_stream = response.extensions.get("network_stream")
        if logger.isEnabledFor(logging.DEBUG):
            told = self._request.method, self.target, response.status_code, response.http_version
            logger.debug("%s %s: %d, %s", *told)
        return response

    def _redirected(self, status: int, url: Any) -> Any:
        """Return the request that follows a redirect. Raises RedirectError where it is not to be followed."""
        options = self._options
        method, same_origin = self._request.method, _origin_of(url) == _origin_of(self._request.url)
        becomes_get = (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST")
        keeps_body = options.has_body and method == options.method and not becomes_get
        if options.has_body and not options.follow_redirects and not (status in (307, 308) and same_origin):
            raise RedirectError(
                f"{self.target}: {status} to {describe(url)}; a request with a body follows only 307 and 308 "
                "within its origin, follow_redirects=True follows this one",
                status,
            )
        if keeps_body and not options.replayable:
            raise RedirectError(f"{self.target}: {status} to {describe(url)}; the body can be read only once", status)
        # `Host` and the body's length are set anew.
        dropped = {"host", "content-length", "transfer-encoding"} | (set() if keeps_body else _BODY_HEADERS)
        headers = [
            (name, value)
            for name, value in self._request.headers.raw
            if (key := name.decode("ascii").lower()) not in dropped
            and (same_origin or key in _CROSS_ORIGIN_HEADERS | _BODY_HEADERS)
        ]
        extensions = self._request.extensions
        if not same_origin:
            # For good: a redirect back does not bring them back.
            self._send_options = {"auth": None}
            headers += self._neutral_headers()
            extensions = {"timeout": extensions["timeout"]}
        content = options.build["content"] if keeps_body else None
        method = "GET" if becomes_get else method
        return type(self._request)(method, url, headers=headers, extensions=extensions, content=content)

    def _neutral_headers(self) -> list[tuple[bytes, bytes]]:
        """Return what goes to another origin in place of what the caller may have set."""
        package = self._client.package
        agent = ("User-Agent", f"python-{package.__name__}/{package.__version__}")
        defaults = (*(pair for pair in DEFAULT_HEADERS if pair[0] != "Accept"), agent)
        return [(name.encode(), value.encode()) for name, value in defaults]

    async def _follow(self, request: Any) -> None:
        origin = _origin_of(request.url)
        changes = origin != _origin_of(self._request.url)
        self._request, self._response = request, None
        if changes and self._clients.has_factory:
            # The new origin may speak what the old one does not. Leased first: whatever happens
            # meanwhile, one client is ours to give back.
            lease = self._clients.lease
            with CallersCode("the bridge's client function", passes=Exception):
                client = await loops.run_in_daemon_thread(
                    "sseqbridge-client", lease, origin, discard=self._clients.put_back
                )
            self._clients.put_back(self._client)
            self._client, self._origin = client, origin

    def _location(self, response: Any) -> Any:
        status = response.status_code
        try:
            url = self._request.url.join(response.headers["location"])
        except Exception as exc:
            raise RedirectError(f"{self.target}: {status} without a usable Location", status) from exc
        if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
            raise RedirectError(f"{self.target}: {status} without a usable Location", status)
        return url

    async def _checked(self, response: Any) -> Head:
        # Of httpx2's a copy; as bytes, which need not be ASCII.
        headers = response.headers
        headers = headers if isinstance(headers, httpx.Headers) else httpx.Headers(headers.raw)
        if response.is_stream_consumed:
            # By an event hook of the client's, or by its auth: httpx has decompressed it.
            self._decoder, self._body = body_decoder("", self._slice_bytes), _Pulled(_whole(response))
        else:
            self._body = response.extensions.get(BODY_EXTENSION) or _Pulled(unbounded_stream(response))
            try:
                self._decoder = body_decoder(headers.get("content-encoding", ""), self._slice_bytes)
            except ProtocolError as error:
                if response.status_code == 200:
                    raise
                # The status is the news. Why its body is not to be had comes with the body.
                self._body = _Pulled(_unreadable(error))
        if response.status_code == 200 and self._options.check_content_type:
            media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type != "text/event-stream":
                body = await self.read_body()
                told = f"as {media_type}" if media_type else "without a Content-Type"
                raise ContentTypeError(
                    f"{self.target} answered 200 {told}, not as text/event-stream; the answer is in .body, "
                    "check_content_type=False reads it all the same",
                    200,
                    headers,
                    body.content,
                )
        if response.status_code == 200 and is_cut(response):
            raise SSEError(
                f"{self.target}: an event hook or auth of the HTTP client read the stream, and {MAX_BODY_BYTES} bytes "
                "are all that it can get; it must not read the body of an event stream"
            )
        return Head(response.status_code, headers, response.http_version)

    # Reading.

    def put_through(self, put: Callable[[Batch], bool]) -> None:
        """Have batches given to `put` by the transport's callback, while __anext__ waits.

        A transport that cannot do that leaves them to __anext__, and so does `put` with a batch
        for which it returns False. It must not raise.
        """
        self._put = put

    def __aiter__(self) -> Exchange:
        return self

    async def __anext__(self) -> Batch | Body:
        """Return the next batch. Raises StopAsyncIteration once `outcome` is set."""
        if self.outcome is not None and self._drain_left is None:
            raise StopAsyncIteration
        if self._response.status_code != 200:
            return await self._error_body()
        while (batch := self._parsed()) is None:
            if self._parsing is not None:
                # What gives no events can be without end where it was compressed: let others on.
                await anyio.sleep(0)
                continue
            chunk = await self._next_chunk(None if self._put is None else self._take_in)
            if chunk is None:
                self._end()
                raise StopAsyncIteration
            if chunk:
                self._parsing = self._parse(chunk)
        return batch

    def _take_in(self, chunk: bytes) -> bool:
        """Take what the transport has just read; False where __anext__ has to go on with it."""
        assert self._put is not None
        self.received += len(chunk)
        if self._drain_left is not None:
            self._drain_left -= len(chunk)
            return self._drain_left >= 0
        parsing = self._parsing = self._parse(chunk)
        left = _SLICES_OF_A_READ
        try:
            for batch in parsing:
                if batch is not None and (self.outcome is not None or not self._put(batch)):
                    self._pending = batch
                    return False
                left -= 1
                if not left:
                    return False
        except Exception as exc:
            self._failure = exc
            return False
        self._parsing = None
        return True

    def drain(self) -> None:
        """Read on without giving batches, a little, so that the connection can be used again."""
        self._drain_left = _DRAIN_BYTES
        self._parsing = None
        self.outcome = "done"

    async def _next_chunk(self, sink: Sink | None = None) -> bytes | None:
        """Return what comes next of the body, None at its end, b"" where `sink` says to go on."""
        assert self._body is not None
        while True:
            try:
                with CallersCode(_CLIENT, passes=Exception):
                    chunk = await self._body.read(sink)
            except SSEError:
                raise
            except Exception as exc:
                raise self._translated(original(exc)) from original(exc)
            if chunk is None:
                if self._drain_left is not None and self._drain_left < 0:
                    return None
                return b""
            if not chunk:
                self._complete = True
                return None
            self.received += len(chunk)
            if self._drain_left is None:
                return chunk
            self._drain_left -= len(chunk)
            if self._drain_left < 0:
                return None

    def _parsed(self) -> Batch | None:
        """Return what is there without reading on; None where that is nothing, or nothing for a while."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            return pending
        if self._failure is not None:
            raise self._failure
        parsing = self._parsing
        for _ in range(_SLICES_AT_A_TIME):
            batch = _NO_MORE if parsing is None else next(parsing, _NO_MORE)
            if batch is _NO_MORE:
                self._parsing = None
                break
            if batch is not None:
                return batch
        return None

    def rest(self) -> Batch | None:
        """Return the next batch of what was read already, where no more is to be read; None at its end."""
        while self._pending is not None or self._failure is not None or self._parsing is not None:
            if (batch := self._parsed()) is not None:
                return batch
        return None

    def _parse(self, chunk: bytes) -> Iterator[Batch | None]:
        """Give what `chunk` completes, and None for a part that completes nothing anyone would notice."""
        assert self._decoder is not None
        parser, options = self._parser, self._options
        last_event_id, retry = parser.last_event_id, parser.retry
        for piece in self._decoder.slices(chunk):
            self._uncharged += len(piece)
            items: list[Any] = parser.feed(piece)
            last = None
            if items:
                # A list of texts is searched faster than a loop would. Comments have none.
                if options.comments:
                    texts = [getattr(item, "data", None) for item in items]
                else:
                    texts = [item.data for item in items]
                if options.done is not None and options.done in texts:
                    last = items[texts.index(options.done)]
                    del items[texts.index(options.done) :]
                if options.skip_empty and "" in texts:
                    items = [item for item in items if not _is_empty(item)]
            while len(items) > self._batch_items:
                part, items = items[: self._batch_items], items[self._batch_items :]
                last_event_id = next((item.id for item in reversed(part) if type(item) is not Comment), last_event_id)
                yield self._batch(part, last_event_id, retry)
            if last is not None:
                break
            is_new = bool(items) or parser.last_event_id != last_event_id or parser.retry != retry
            last_event_id, retry = parser.last_event_id, parser.retry
            yield self._batch(items, last_event_id, retry) if is_new else None
        else:
            if parser.error is not None:
                raise parser.error
            return
        self.done_event = last
        self.drain()
        # Where the last event left the stream, whatever came in the same read.
        yield self._batch(items, last.id, parser.retry)

    def _batch(self, items: list[Item], last_event_id: str, retry: float | None) -> Batch:
        charge = self._uncharged + EVENT_OVERHEAD * max(1, len(items))
        self._uncharged = 0
        events = sum(type(item) is not Comment for item in items) if self._options.comments else len(items)
        self.events += events
        return Batch(items, events, charge, last_event_id, retry)

    def _end(self) -> None:
        if self.outcome is not None:
            return
        assert self._decoder is not None
        self._decoder.finish()
        self.ended_cleanly = True
        if self._options.require_done:
            raise TruncatedStreamError(
                f"{self.target}: the stream ended without {self._options.done or 'its last event'!r}"
            )
        self.outcome = "eof"

    async def _error_body(self) -> Batch | Body:
        if self._response.status_code == 204:
            self.outcome = "eof"
            raise StopAsyncIteration
        body = await self.read_body()
        self.outcome = "eof"
        return body

    async def read_body(self) -> Body:
        """Return the body of an answer that is no event stream, as far as it comes within bounds."""
        content, error = bytearray(), None
        with anyio.move_on_after(BODY_SECONDS):
            try:
                while len(content) <= MAX_BODY_BYTES and (chunk := await self._next_chunk()) is not None:
                    assert self._decoder is not None
                    for piece in self._decoder.slices(chunk):
                        content += piece
                        if len(content) > MAX_BODY_BYTES:
                            break
            except SSEError as exc:
                error = exc
        return Body(bytes(content[:MAX_BODY_BYTES]), error)

    # Ending.

    def shut_down(self) -> None:
        """Cut the connection off, at once, whatever the reading waits for.

        Before the head is in there is nothing to do: httpx closes what it was setting up.
        """
        if self._network_stream is None or (self._is_http2() and self._client.shared):
            return
        try:
            # A transport of the caller's answers with a stream of its own.
            with CallersCode(_CLIENT):
                sockets.shut_down_connection(self._network_stream)
        except SSEError as exc:
            logger.debug("%s: cutting the connection off failed", self.target, exc_info=exc)

    def detach_after_fork(self) -> None:
        """In a forked child, leave the connection to the parent."""
        if self._network_stream is not None:
            sockets.detach_connection_after_fork(self._network_stream)

    def _is_http2(self) -> bool:
        return bool(self._response.http_version == "HTTP/2")

    def drop(self, cause: SSEError | None, *, was_asked_for: bool = False) -> bool:
        """Give the connection up for another one: there is none."""
        return False

    def check_asked(self) -> None:
        """Raise UsageError where the caller asks for another connection."""
        raise UsageError("this stream does not reconnect: ask for it with reconnect=True")

    async def aclose(self) -> None:
        """Give the connection back where the answer was read to its end, else close it."""
        # A stream_task's method, which would make a cycle of the two.
        self._put = None
        await self._close_response()
        await self._close(self._options.build.get("content"), "the request's body")
        if self._complete or (self._response is not None and not self._is_http2()):
            await self._clients.give_back(self._client, self._origin)
        else:
            # An HTTP/2 connection would stay open, also where no answer has come yet.
            await self._clients.discard(self._client)

    def abandon(self) -> None:
        """Give the client back of what was made too late, and never opened."""
        self._clients.put_back(self._client)

    async def _close_response(self) -> None:
        # From here on the connection may serve another request: it is not ours to cut off.
        self._network_stream = None
        if self._response is None:
            return
        await self._close(self._response, "the response")
        if isinstance(self._body, _Pulled):
            # Else the loop closes its generator, and an exit in there would end the loop.
            await self._close(self._body, "the response's body")

    async def _close(self, closable: Any, name: str) -> None:
        """Close what has an aclose(). A failure is of no interest but to the log."""
        close = getattr(closable, "aclose", None)
        if close is None:
            return
        try:
            with CallersCode(f"closing {name}", passes=Exception):
                await close()
        except Exception as exc:
            logger.debug("%s: closing %s failed: %s", self.target, name, type(exc).__name__)

    def _translated(self, exc: BaseException) -> SSEError:
        """Return one of our errors for one of the transport's."""
        package, target, reason = self._client.package, self.target, _reason(exc)
        timeout = self._options.timeout
        if isinstance(exc, SSEError):
            return exc
        if isinstance(exc, (package.ConnectTimeout, package.PoolTimeout)):
            return StreamTimeoutError("connect", timeout.connect)
        if isinstance(exc, package.ReadTimeout):
            return StreamTimeoutError("read", timeout.read)
        if isinstance(exc, package.WriteTimeout):
            return StreamTimeoutError("write", timeout.read)
        if isinstance(exc, (package.ConnectError, package.ProxyError)):
            return ConnectError(f"no connection to {target}: {reason}")
        if isinstance(exc, package.InvalidURL) or "location header" in str(exc):
            # httpx reads it also where it is not to follow it, and gives no response then.
            return ProtocolError(f"{target}: a redirect without a usable Location")
        if isinstance(exc, package.RemoteProtocolError):
            was_closed = any(words in str(exc) for words in _WORDS_OF_A_CLOSE)
            if was_closed and self._body is not None:
                return TruncatedStreamError(f"{target}: the connection was closed in mid-stream")
            if WORDS_OF_A_LATE_CLOSE in str(exc):
                return ReadError(
                    f"{target}: the connection, kept from an earlier request, was closed before an answer came; "
                    f"this {self._request.method} may be at work all the same, and is not sent again"
                )
            if was_closed:
                return ReadError(f"{target}: the connection was closed before an answer came")
            return ProtocolError(f"{target}: the answer is not valid HTTP")
        if isinstance(exc, (package.NetworkError, OSError)):
            return ReadError(f"{target}: the connection broke: {reason}")
        if isinstance(exc, package.HTTPError):
            return TransportError(f"{target}: the transport failed: {type(exc).__name__}")
        if self._runs_callers_code():
            return CallbackError(f"{target}: {_CLIENT} raised {type(exc).__name__}")
        return TransportError(f"{target}: the transport failed: {type(exc).__name__}")

    def _runs_callers_code(self) -> bool:
        options = self._options
        return (
            self._clients.has_callers_code
            or "auth" in self._send_options
            or options.build["files"] is not None
            or bool(options.build["extensions"])
        )


class _Pulled:
    """The body of an answer that came through another transport than our own."""

    def __init__(self, chunks: Any) -> None:
        self._chunks: AsyncIterator[bytes] = chunks.__aiter__()

    async def read(self, sink: Sink | None) -> bytes | None:
        """Return the next bytes, b"" at the end. Nothing is given to `sink`."""
        try:
            while not (chunk := await self._chunks.__anext__()):
                pass
        except StopAsyncIteration:
            return b""
        return chunk

    async def aclose(self) -> None:
        """Close the generator that the bytes come from."""
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()


async def _unreadable(error: ProtocolError) -> AsyncIterator[bytes]:
    raise error
    yield b""


async def _whole(response: Any) -> AsyncIterator[bytes]:
    yield response.content


def describe(url: Any) -> str:
    """Return a URL as messages may show it: without credentials, query and fragment."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    port = "" if url.port is None else f":{url.port}"
    # The raw path: in the other one, escaped line breaks are line breaks.
    return f"{url.scheme}://{host}{port}{url.raw_path.partition(b'?')[0].decode('ascii')}"


def status_error(target: str, head: Head, body: Body) -> StatusError:
    """Return the error for an answer with a status that is not 200."""
    try:
        phrase = f" {HTTPStatus(head.status).phrase}"
    except ValueError:
        phrase = ""
    error = StatusError(
        f"{target} answered {head.status}{phrase}; the answer is in .body", head.status, head.headers, body.content
    )
    error.__cause__ = body.error
    return error


def _is_empty(event: ServerSentEvent) -> bool:
    return not event.data and event.event != "error"


def _origin_of(url: Any) -> str:
    try:
        url = url if isinstance(url, httpx.URL) else parsed_url(str(url))
        port = url.port or {"http": 80, "https": 443}.get(url.scheme)
        return f"{url.scheme}://{url.host}:{port}"
    except (httpx.InvalidURL, ValueError):
        return ""


def _reason(exc: BaseException) -> str:
    """Return the operating system's own words from somewhere in a chain of causes."""
    reason = type(exc).__name__
    for link in _chain(exc):
        if isinstance(link, OSError) and link.strerror:
            reason = link.strerror
            if link.errno is not None and reason.startswith("Connect call failed"):
                # asyncio's own text, which leaves out the reason.
                reason = os.strerror(link.errno)
        elif isinstance(link, UnicodeError):
            reason = "the host is not a valid name"
    return reason


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes, outermost first."""
    link: BaseException | None = exc
    while link is not None:
        yield link
        # A name with several addresses makes a group: the first of its errors will do.
        link = link.__cause__ or link.__context__ or next(iter(getattr(link, "exceptions", ())), None)
