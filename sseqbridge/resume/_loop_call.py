"""A call: a coroutine function that runs once on the loop thread, for a caller in a thread or another loop.

| field      | written by                           | guarded by                 |
|------------|--------------------------------------|----------------------------|
| `result`   | the loop thread; any thread closes it | the channel is thread-safe |
| `_task`, `_producer` | the loop thread            | no other thread reads them |
| all others | the constructor                      | not written later          |
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from sseqbridge._engine.channel import Channel, End, post
from sseqbridge._exceptions import BridgeClosedError

from ._hub import Hub
from ._producer import Producer

__all__ = ["LoopCall"]

T = TypeVar("T")


class LoopCall(Generic[T]):
    """Runs `action(hub)` on the hub's loop. `result` receives its value in a tuple, or an End with its error.

    The call ends with the hub's tasks unless `is_of_hub` is False, as for the call that closes the hub.
    """

    def __init__(self, hub: Hub, action: Callable[[Hub], Coroutine[Any, Any, T]], *, is_of_hub: bool = True) -> None:
        self._hub = hub
        self._action = action
        self._is_of_hub = is_of_hub
        self._task: asyncio.Task[None] | None = None
        # The call's value, if it is a producer.
        self._producer: Producer | None = None
        self.state = hub.state
        self.result: Channel[Any] = Channel(hub.loop, 1)

    def start(self) -> None:
        """Start the action. Must be called on the loop thread."""
        if self._is_of_hub and self._hub.is_closing:
            # Closed between the caller's check and this callback.
            self.release_consumer()
            return
        # If the loop cannot even run to its end, the task never gets to its own.
        self.state.call_at_end(self.release_consumer)
        spawn = self._hub.spawn if self._is_of_hub else self._hub.loop.create_task
        self._task = spawn(self._run())

    async def _run(self) -> None:
        try:
            await self._act()
        finally:
            self.state.cancel_call_at_end(self.release_consumer)

    async def _act(self) -> None:
        try:
            value = await self._action(self._hub)
        except asyncio.CancelledError:
            self.release_consumer()
            raise
        except BaseException as exc:
            self.result.end(End("error", exc))
            return
        if isinstance(value, Producer):
            self._producer = value
            if self.result.closed:
                self._abort_producer()
        self.result.send_nowait((value,))

    def _abort_producer(self) -> None:
        # No caller is left to call `start`.
        if self._producer is not None:
            self._producer.abort()

    def release_consumer(self) -> None:
        """End the caller's wait, since the loop ended before the call did."""
        self.result.end(End("error", BridgeClosedError("the bridge, or the log, was closed during the call")))

    def value(self, entry: Any) -> T:
        """Return the value in an entry of `result`, or raise the error."""
        if isinstance(entry, tuple) and not isinstance(entry, End):
            return entry[0]  # type: ignore[no-any-return]
        raise entry.error

    def abort(self) -> None:
        """Discard the result; abort it if it is a producer. Thread-safe."""
        self.result.close()
        post(self._hub.loop, self._abort_producer)
