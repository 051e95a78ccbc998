"""One request of an HTTP client, and its response's bytes as they came: sent on the loop, read in another thread.

The task of a RawExchange sends the request, puts the head into a channel, then bytes of the body, then an End. Body
bytes go from the transport's callback into the channel; the task resumes only for the head, the end, an error, and a
full channel (backpressure). On a reused connection a RawTransfer does all this in callbacks, without a task, until
something has to be awaited. Everything runs on the loop thread, except for the methods that are marked thread-safe.

The channel's consumer gets an End of outcome "eof" only if the whole body was received.
Neither a RawExchange nor anything that it references may reference the response that the user holds, which aborts
the request when it is dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from sseqbridge._exceptions import BridgeClosedError, ConnectError, SSEError, UsageError
from sseqbridge._http import http2
from sseqbridge._http.bounded_bodies import unbounded_stream
from sseqbridge._http.connection import BODY_EXTENSION, BodyStream
from sseqbridge._http.connection_auth import own_connections
from sseqbridge._http.errors import ReusedConnectionClosed
from sseqbridge._http.forwarded import ForwardedRequest, error_of, package_of
from sseqbridge._http.h1_heads import printable_reason
from sseqbridge._http.transport import SAFE_METHODS
from sseqbridge._http.urls import describe, origin_key
from sseqbridge._runtime.callbacks import original

from .channel import CLOSED, Channel, End, ThreadChannel, post
from .client_lease import ClientLease
from .memory import DEFAULT_MAX_BUFFERED_BYTES, memory
from .raw_transfer import RawTransfer
from .raw_writer import RawWriter
from .responses import PulledBody, response_headers
from .transfer_task import TransferTask

if TYPE_CHECKING:
    from sseqbridge._http.client import ClientPool
    from sseqbridge._http.connection import HTTP11Connection
    from sseqbridge._http.direct_request import DirectRequest
    from sseqbridge._http.h1_heads import ResponseHead

    from .loop_state import LoopState

__all__ = ["RawExchange", "RawHead"]

logger = logging.getLogger("sseqbridge")

# How many bytes of a request's body may be ahead of the connection.
_MAX_UPLOAD_BYTES = 256 * 1024

# After an event stream's last event: for how long the rest of the body is read in the background. The connection can be
# reused if the rest comes in that time.
_DRAIN_SECONDS = 1.0


class RawHead(NamedTuple):
    """The head of a response. `extensions` are those of httpx's responses."""

    status: int
    headers: list[tuple[bytes, bytes]]
    extensions: dict[str, Any]


class _Sender(ClientLease):
    """Sends a request as it is."""

    def __init__(self, clients: ClientPool, request: ForwardedRequest) -> None:
        super().__init__(clients, origin_key(request.url) if clients.has_factory else "")
        self._request = request
        self._direct = self._client.forwarded_bytes(request)
        # The error of the request that was sent on reused_connection().
        self._failure: Exception | None = None

    @cached_property
    def is_direct(self) -> bool:
        """Whether the library's own transport sends the request. Raises UsageError for a proxy that cannot be used."""
        return self._client.is_direct(self._request)

    @property
    def target(self) -> str:
        """The request's URL, as messages may show it."""
        return describe(self._request.url)

    def reused_connection(self) -> tuple[HTTP11Connection, DirectRequest] | None:
        """Return an idle connection, and the request to send on it; None if send() has to send the request."""
        direct = self._direct
        connection = None if direct is None else self._client.reused_connection(direct)
        self.network_stream = connection
        return None if direct is None or connection is None else (connection, direct)

    @property
    def read_timeout(self) -> float | None:
        """The limit of the seconds without a byte."""
        seconds: float | None = self._request.extensions.get("timeout", {}).get("read")
        return seconds

    def continue_with(self, result: httpx.Response | Exception) -> None:
        """Take the response, or its error, of the request that was sent on reused_connection().

        send() raises the error. A safe request whose reused connection was closed is sent again by it.
        """
        self.network_stream = None
        if isinstance(result, Exception):
            self._failure = result
        else:
            self._received(result)

    async def _send_request(self) -> Any:
        failure, self._failure = self._failure, None
        is_again = isinstance(failure, ReusedConnectionClosed) and self._request.method in SAFE_METHODS
        if failure is not None and not is_again:
            raise failure
        return await self._client.forward(self._request, is_again=is_again)

    async def send(self) -> Any:
        """Send the request and return its response."""
        try:
            response = await self._send_request()
        except asyncio.CancelledError as exc:
            if self._client.shared and not self.is_direct:
                await http2.abort_before_response(exc, self._request)
            raise
        self._received(response)
        return response

    async def finish(self, *, is_read_to_end: bool) -> None:
        """Close the response and return the client."""
        await self.close_response(is_read_to_end=is_read_to_end)
        if not self._client.shared:
            await self.release(is_read_to_end=is_read_to_end)


class Upload:
    """The body of a request, produced by the caller's thread and consumed by the loop."""

    def __init__(self) -> None:
        self._channel: ThreadChannel[bytes] = ThreadChannel(_MAX_UPLOAD_BYTES)

    # The caller's thread.

    def send(self, part: bytes) -> bool:
        """Pass on one part, blocking while too many wait. Returns False if no more is wanted."""
        return self._channel.send_blocking(part, len(part))

    def end(self) -> None:
        """End the body."""
        self._channel.end(End("eof"))

    # The loop.

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the parts."""
        while not isinstance(part := await self._channel.areceive(), End):
            yield part

    def close(self) -> None:
        """Want no more parts. Thread-safe."""
        self._channel.close()


class RawExchange(TransferTask):
    """Sends one request on the loop. Made in the caller's thread, started on the loop thread.

    `idle` limits the seconds without a byte, or in an event stream without an event, from the head on. Errors in the
    channel are those of the request's package, httpx or httpx2.
    """

    events = 0

    def __init__(
        self, state: LoopState, clients: ClientPool, request: Any, idle: float | None, owner: object = None
    ) -> None:
        """Lease a client. `owner` has the connections that the request authenticates: see own_connections().

        Raises UsageError if `request` is of neither package, CallbackError if no client is made.
        """
        super().__init__(state)
        self._package = package_of(request)
        in_memory = ForwardedRequest.has_body_in_memory(request, self._package)
        # The body that the caller's thread has to produce; None if it is in memory.
        self.upload = None if in_memory else Upload()
        self._sender = _Sender(clients, ForwardedRequest(request, self._package, self.upload))
        self.channel: Channel[RawHead | bytes] = Channel(state.loop, DEFAULT_MAX_BUFFERED_BYTES)
        self.writer = RawWriter(self.channel, state.loop)
        self.task: asyncio.Task[None] | None = None
        # Does the work as long as there is no task.
        self._callbacks: RawTransfer | None = None
        self._idle = idle
        self._owner = owner
        self._timer: asyncio.TimerHandle | None = None
        self._body: BodyStream | PulledBody | None = None
        self._is_aborted = False
        self._reason: BaseException | None = None

    # Thread-safe, and safe in finalizers and signal handlers: no lock, no wait.

    @property
    def target(self) -> str:
        """The request's URL, as messages may show it."""
        return self._sender.target

    @property
    def received(self) -> int:
        """The number of bytes of the body so far."""
        return self.writer.received

    def abort(self) -> None:
        """Abort the request. Its consumer gets closed_error(). Does nothing in a forked child."""
        if not self.is_inherited and not self.finished:
            post(self.loop, self.abort_on_loop, None)

    def close(self) -> bool:
        """Close the channel and abort the request. Does nothing in a forked child.

        Returns False if there is nothing to wait for: if the request had ended, or if an event stream has come to its
        last event. Then the rest of the body is read in the background, so that the connection can be reused.
        """
        if self.is_inherited:
            return False
        if self.finished:
            # The end is in the channel, or about to be. Only what was not read is released.
            if self.channel.pending:
                self.channel.close()
            return False
        self.channel.close()
        is_at_end = self.writer.ends_stream
        post(self.loop, self._drain_on_loop if is_at_end else self.abort_on_loop, None)
        return not is_at_end

    def closed_error(self) -> BaseException:
        """Return the error for a consumer whose response was closed while it waited."""
        error: BaseException = self._package.ReadError("the response was closed while it was being read")
        return error

    # On the loop thread.

    def start(self) -> None:
        """Send the request on an idle connection, in callbacks, or start the task; in the context of the caller."""
        self.state.add(self)
        memory.enter(self.channel, self.loop)
        # A handler of log records is code of the caller's, and expects its context.
        reused = None if logger.isEnabledFor(logging.DEBUG) else self._sender.reused_connection()
        if reused is None:
            self._start_task()
            return
        connection, request = reused
        self._callbacks = RawTransfer(self, connection, request.method, self._sender.read_timeout)
        self._callbacks.start(request.data)

    def _start_task(self) -> None:
        self.task = self.loop.create_task(self._run(), name="sseqbridge-request")
        self.task.add_done_callback(self._done)

    # For the RawTransfer.

    def open_in_callback(self, response: ResponseHead, body: BodyStream) -> None:
        """Put the head into the channel, without waking the consumer."""
        self._body = body
        extensions = {
            "http_version": b"HTTP/" + response.http_version,
            "reason_phrase": response.reason,
            "network_stream": ConnectionInfo(self._sender.network_stream),
        }
        self.writer.wakes_consumer = False
        self.channel.send_silently(RawHead(response.status, response.headers, extensions))
        if self._idle is not None:
            self._watch_idle(httpx.Headers(response.headers))

    def take(self, data: bytes) -> bool:
        """Take what the transport has just read. Returns False if the task has to continue."""
        is_taken = self.writer.take(data)
        if self.writer.is_drained:
            self.abort_on_loop(None)
        return is_taken

    def continue_with(self, result: httpx.Response | Exception) -> None:
        """Start the task, which continues with the response, or with the error before its head."""
        self._callbacks = None
        self._sender.continue_with(result)
        self._start_task()

    def end_in_callback(self) -> None:
        """End the exchange: the body is complete, and the connection is back in the pool, or closed."""
        self._callbacks = self._body = self._sender.network_stream = None
        self._finish(None, is_complete=True)

    async def _run(self) -> None:
        error: BaseException | None = None
        own_connections(self._owner)
        try:
            # An abort can be posted before the task has taken its first step.
            if not self._is_aborted:
                await self._transfer_cancellably(is_direct=self._sender.is_direct)
        except asyncio.CancelledError:
            if not self._is_aborted:
                raise
        except Exception as exc:
            error = original(exc)
        finally:
            self._cancel_transfer = None
            # A forked child that unwinds its parent's tasks must not close the parent's connection.
            if not self.is_inherited and not self.finished:
                await self._close(is_read_to_end=False)
        if not self.finished:
            self._finish(error)
        error = None  # Its traceback references this frame.

    async def _transfer(self) -> None:
        if self._body is None:
            response = await self._sender.send()
            if self.upload is not None:
                # A response ends the sending of the request.
                self.upload.close()
            head, self._body = self._opened(response)
            # Wakes the consumer in the next iteration of the loop, or with the end of the body if that is here already.
            self.channel.send_deferred(head)
            if self._idle is not None:
                self._watch_idle(response_headers(response))
        elif rest := self.writer.pop_pending():
            await self.writer.write(rest)
        while data := await self._read():
            await self.writer.write(data)
        await self._close(is_read_to_end=True)
        self._finish(None, is_complete=True)

    def _opened(self, response: Any) -> tuple[RawHead, BodyStream | PulledBody]:
        extensions = _extensions(response, ConnectionInfo(self._sender.network_stream))
        headers = response.headers.raw
        body: BodyStream | PulledBody | None = extensions.pop(BODY_EXTENSION, None)
        if body is None and response.is_stream_consumed:
            # By an event hook of the client's: httpx has decompressed the body.
            headers = [(name, value) for name, value in headers if name.lower() != b"content-encoding"]
            body = PulledBody(_only(response.content))
        elif body is None:
            body = PulledBody(unbounded_stream(response))
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s: %d, %s", self.target, response.status_code, response.http_version)
        return RawHead(response.status_code, headers, extensions), body

    async def _read(self) -> bytes:
        """Return bytes that are to be sent to the consumer, b"" at the end of the body."""
        assert self._body is not None
        while (data := await self._body.read(self.take)) != b"":
            if data is None:
                return self.writer.pop_pending()
            if self.writer.note(data):
                return data
            if self.writer.is_drained:
                self.abort_on_loop(None)
                # A body that never waits would keep the loop from cancelling this.
                await asyncio.sleep(0)
        return b""

    def _watch_idle(self, headers: httpx.Headers) -> None:
        self.writer.watch_idle(headers)
        self._check_idle()

    def _check_idle(self) -> None:
        # One timer a response, set again when it fires: a read only costs a look at the clock.
        assert self._idle is not None
        now = self.loop.time()
        since = now if self.writer.idle_since is None else self.writer.idle_since
        if now - since >= self._idle:
            what = "no event (comments and heartbeats do not count)" if self.writer.detects_events else "no byte"
            self.abort_on_loop(self._package.ReadTimeout(f"{what} came for {self._idle:g} s, the limit `idle`"))
        else:
            self._timer = self.loop.call_at(since + self._idle, self._check_idle)

    def _drain_on_loop(self, reason: None) -> None:
        if not self.finished and self.writer.start_draining():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_later(_DRAIN_SECONDS, self.abort_on_loop, None)

    def abort_on_loop(self, reason: BaseException | None) -> None:
        """Shut the connection down and end the task. The consumer gets `reason`, or that the response was closed."""
        if self.finished or (self.task is None and self._callbacks is None) or self.is_inherited:
            return
        if self._reason is None:
            self._reason = reason
        if self._callbacks is not None:
            callbacks, self._callbacks = self._callbacks, None
            callbacks.close()
            self._sender.network_stream = None
            self._finish(None)
            return
        # The socket first: a task that waits for something else could take its time.
        self._sender.shut_down()
        self._is_aborted = True
        if self.upload is not None:
            self.upload.close()
        if self._cancel_transfer is not None:
            self._cancel_transfer()

    def release_consumer(self) -> None:
        """End the channel, although the task has not ended."""
        self._finish(BridgeClosedError("the request's task did not end in time"))

    def _done(self, task: asyncio.Task[None]) -> None:
        # If _run did not get to its end: it was cancelled, or closing the connection raised an exit.
        if not self.finished:
            cancelled = BridgeClosedError("the event loop that the request ran on is ending")
            self._finish(cancelled if task.cancelled() else task.exception())

    async def _close(self, *, is_read_to_end: bool) -> None:
        body, self._body = self._body, None
        await self._sender.finish(is_read_to_end=is_read_to_end)
        if isinstance(body, PulledBody):
            await self._sender.close_quietly(body, "the response's body")

    def _finish(self, error: BaseException | None, *, is_complete: bool = False) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.upload is not None:
            self.upload.close()
        self.state.discard(self)
        end = End("eof") if is_complete else self._end_of(error)
        # First: a consumer that has got the end has nothing to abort.
        self.mark_finished()
        self.channel.end(end)

    def _end_of(self, error: BaseException | None) -> End:
        if self._reason is not None:
            error = self._reason
        if error is None:
            return CLOSED
        if isinstance(error, BridgeClosedError):
            return End("error", self._own_error("ReadError", error))
        if isinstance(error, (ConnectError, UsageError)):
            # A setting of the environment that this request needs: a proxy, or the certificates.
            return End("error", self._own_error("ConnectError", error))
        return End("error", error if isinstance(error, SSEError) else error_of(self._package, error))

    def _own_error(self, name: str, error: BaseException) -> BaseException:
        """Return an error of the request's package for one of this package."""
        own: BaseException = getattr(self._package, name)(str(error))
        own.__cause__ = error
        return own


def _extensions(response: Any, connection: ConnectionInfo) -> dict[str, Any]:
    """Return the extensions of a transport's response as another client gets them."""
    extensions = {**response.extensions, "network_stream": connection}
    if "reason_phrase" in extensions:
        extensions["reason_phrase"] = printable_reason(extensions["reason_phrase"])
    return extensions


async def _only(content: bytes) -> AsyncIterator[bytes]:
    yield content


class ConnectionInfo:
    """The connection of a response, as far as other threads may use it: facts, but neither bytes nor TLS.

    It takes the place of httpx's network stream in the extensions of a response.
    """

    def __init__(self, network_stream: Any) -> None:
        self._network_stream = network_stream

    def get_extra_info(self, info: str) -> Any:
        """Return "socket", "ssl_object", "server_addr" or "client_addr"; None if it is not known."""
        return None if self._network_stream is None else self._network_stream.get_extra_info(info)
