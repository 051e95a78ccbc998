"""A request whose response has not arrived: the core of request_sse, arequest_sse, SSEClient, Call, merge and gather.

A PendingResponse is made and sent by the consumer, in its thread or coroutine. If the consumer fails or is
interrupted before it holds the response, it aborts the subscription.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sseqbridge._engine.attempt_options import options_of_attempt
from sseqbridge._engine.caller_loops import running_loop_state, state_of_client
from sseqbridge._engine.channel import End
from sseqbridge._engine.reconnection_notice import Reconnecting, call_on_reconnect
from sseqbridge._engine.responses import Head
from sseqbridge._engine.scope import check_scope
from sseqbridge._engine.stream_task import StreamTask
from sseqbridge._exceptions import RequestAbortedError
from sseqbridge._http.pauses import Pauses, pauses_of_function

from .bridge import Bridge, check_bridge, default_bridge
from .cursor import Cursor
from .reader import ItemReader
from .sync import EventStream, SSEResponse

if TYPE_CHECKING:
    from .aio import AsyncSSEResponse
    from .arguments import PreparedRequest

__all__ = ["PendingResponse", "apending", "pending"]


class PendingResponse(NamedTuple):
    """A request whose response's head has not arrived. It is not sent before `send`."""

    subscription: StreamTask
    prepared: PreparedRequest
    # None for a request on the caller's own loop.
    bridge: Bridge | None

    def send(self) -> None:
        """Send the request. If the call fails, the caller aborts it."""
        if self.bridge is None:
            self.subscription.start()
        else:
            self.bridge.start(self.subscription.state, self.subscription)

    def head_of(self, entry: object) -> Head | None:
        """Return the head if the entry is one, None for an entry before it. Raises the stream's error."""
        self.subscription.check_process()
        if isinstance(entry, Reconnecting):
            call_on_reconnect(self.prepared.on_reconnect, entry)
            return None
        if isinstance(entry, Head):
            return entry
        assert isinstance(entry, End)
        if entry.error is None:
            check_scope()
        raise entry.error or RequestAbortedError("the request was aborted before the response's headers were in")

    def wait(self) -> Head:
        """Send the request, and wait for the head of its response. Raises the stream's error."""
        channel = self.subscription.channel
        entry = channel.receive_after(self.send)
        while (head := self.head_of(entry)) is None:
            entry = channel.receive()
        return head

    async def await_head(self) -> Head:
        """Do the same as wait(), in a coroutine."""
        self.send()
        while (head := self.head_of(await self.subscription.channel.areceive())) is None:
            pass
        return head

    def reader(self, head: Head) -> ItemReader[Any]:
        """Return a reader of the stream."""
        prepared = self.prepared
        cancel = prepared.options.cancel
        return ItemReader(Cursor(self.subscription, head, prepared.decoder, cancel, prepared.on_reconnect))

    def response(self, head: Head) -> SSEResponse[Any]:
        """Return the response of synchronous code."""
        return SSEResponse(EventStream(self.reader(head)))

    def open(self) -> SSEResponse[Any]:
        """Send the request, and return its response. An interrupt leaves no request running."""
        try:
            return self.response(self.wait())
        except BaseException:
            self.subscription.abort()
            raise

    async def aopen(self) -> AsyncSSEResponse[Any]:
        """Do the same in a coroutine."""
        from .aio import AsyncEventStream, AsyncSSEResponse

        try:
            head = await self.await_head()
            return AsyncSSEResponse(AsyncEventStream(self.reader(head)))
        except BaseException:
            self.subscription.abort_on_loop(None)
            raise


def pending(prepared: PreparedRequest, bridge: Bridge | None, pauses: Pauses | None = None) -> PendingResponse:
    """Return a request on a bridge, None for the process's own, which was not sent yet.

    `pauses` are those it shares, None for those of the gather whose function sends it. Calls the headers function of a
    client in this thread. Raises RequestAbortedError if `cancel` is set, UsageError if `bridge` is none.
    """
    if bridge is None:
        bridge = default_bridge()
    else:
        check_bridge(bridge)
    prepared.check_not_cancelled()
    pauses = pauses or pauses_of_function.get()
    options = prepared.options if pauses is None else replace(prepared.options, pauses=pauses.of_call())
    return PendingResponse(bridge.new_task(options), prepared, bridge)


async def apending(prepared: PreparedRequest, client: Any = None) -> PendingResponse:
    """Return a request on the running loop, which was not sent yet. `client` is an httpx.AsyncClient of the caller's.

    Calls the headers function of a client in a thread of its own. Raises RequestAbortedError if `cancel` is set.
    """
    prepared.check_not_cancelled()
    state = await running_loop_state() if client is None else state_of_client(client)
    return PendingResponse(StreamTask(state, await options_of_attempt(prepared.options)), prepared, None)
