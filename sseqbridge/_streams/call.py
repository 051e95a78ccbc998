"""Call: a request that was checked and not sent, and can be sent any number of times.

Immutable, so that any thread may send it. Everything that can be checked without a connection is checked by the
constructor, in the caller's thread; what depends on the moment (`cancel`, the scope, the headers function) by each
sending.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sseqbridge._checks import Immutable
from sseqbridge._engine.bridge import has_clients_of_callers
from sseqbridge._exceptions import UsageError
from sseqbridge._http.urls import describe_text

from .pending import PendingResponse, apending, pending

if TYPE_CHECKING:
    from sseqbridge._http.pauses import Pauses

    from .aio import AsyncSSEResponse
    from .arguments import PreparedRequest
    from .bridge import Bridge
    from .sync import SSEResponse

__all__ = ["Call", "apending_call", "pending_call"]

T_co = TypeVar("T_co", covariant=True)


class Call(Immutable, Generic[T_co]):
    """A request that is checked but not sent: `call()` sends it and returns the response, as request_sse does.

        calls = {name: client.call("/chat/completions", data=body(name)) for name in names}
        for name, items in gather(calls):
            ...

    `SSEClient.call` makes it. It may be sent any number of times, at the same time too, by any thread or coroutine;
    each time it is a new request. merge, gather, tee, the relays and the `start` of a log take it in place of a stream.
    Its body is encoded once, so that later changes of the caller's `data` have no effect.

    A call raises what request_sse raises.
    """

    __slots__ = ("_bridge", "_prepared")

    _prepared: PreparedRequest
    _bridge: Bridge | None

    def __init__(self, prepared: PreparedRequest, bridge: Bridge | None) -> None:
        """Check that the request can be built and sent again. SSEClient.call is the public way to make a Call."""
        # A client of the caller's may complete the request, for example by a base URL of its own.
        if bridge is None or not has_clients_of_callers(bridge):
            prepared.options.check_buildable()
        if not prepared.options.has_reusable_body:
            raise UsageError(
                "the body of a Call must be readable again, got one that can be read only once. "
                "Pass bytes, or send it once with request()."
            )
        self._set(_prepared=prepared, _bridge=bridge)

    def __repr__(self) -> str:
        options = self._prepared.options
        return f"<{type(self).__name__} {options.method} {describe_text(options.url)}>"

    def __call__(self) -> SSEResponse[T_co]:
        """Send the request, and return `status, headers, events` once the response's headers have arrived.

        Raises what request_sse raises.
        """
        response = pending_call(self)
        return response.open()

    async def asend(self) -> AsyncSSEResponse[T_co]:
        """Send the request in a coroutine, on its own event loop and without a bridge, as arequest_sse does.

        Raises what arequest_sse raises.
        """
        response = await apending_call(self)
        return await response.aopen()


def pending_call(call: Call[Any], pauses: Pauses | None = None) -> PendingResponse:
    """Return a request of a call on its bridge, which was not sent yet. `pauses` are those that it shares."""
    return pending(call._prepared, call._bridge, pauses)


async def apending_call(call: Call[Any]) -> PendingResponse:
    """Return a request of a call on the running loop, which was not sent yet."""
    return await apending(call._prepared)
