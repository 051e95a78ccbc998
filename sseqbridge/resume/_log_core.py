"""The core of a log: finds the hub of the bridge's current loop, and runs calls on that loop.

Callers' threads run it; the methods whose names begin with "a" are for coroutines of any loop.

| field                | written by       | guarded by                                   |
|----------------------|------------------|----------------------------------------------|
| `_hubs`              | callers' threads | `_lock`                                      |
| a factory's store    | callers' threads | `_lock`, under which `new_store` is called   |
| `is_closed`          | any thread       | turns True once; checked again under `_lock` |
| `bridge`, `settings` | the constructor  | not written later                            |
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from sseqbridge._exceptions import BridgeClosedError, UsageError
from sseqbridge._runtime import fork, loops
from sseqbridge._runtime.callbacks import CallersCode
from sseqbridge._streams.bridge import Bridge, default_bridge

from ._hub import Hub
from ._loop_call import LoopCall
from ._store import LogSettings, Store

if TYPE_CHECKING:
    from sseqbridge._engine.loop_state import LoopState

    from ._reader import Reader

__all__ = ["LogCore"]

T = TypeVar("T")


class LogCore:
    """The shared state of one log. `name` is that of its class, for messages."""

    def __init__(
        self, name: str, settings: LogSettings, bridge: Bridge | None, new_store: Callable[[LogSettings], Store]
    ) -> None:
        self.settings = settings
        self.bridge = bridge
        self.new_store = new_store
        self.is_closed = False
        self._name = name
        self._lock = fork.ForkSafeLock()
        self._hubs: dict[LoopState, Hub] = {}

    def check_may_wait(self, name: str, async_name: str) -> None:
        """Raise UsageError on the bridge's own thread, which must not wait; warn on that of another loop."""
        self._current_bridge().check_may_wait(name, async_name, stacklevel=4)

    def _current_bridge(self) -> Bridge:
        return self.bridge or default_bridge()

    def _check_open(self) -> None:
        if self.is_closed:
            raise UsageError(f"this {self._name} is closed. Make a new one.")

    def hub(self) -> Hub:
        """Return the hub of the bridge's loop; start that loop if necessary."""
        self._check_open()
        state = self._current_bridge().started()
        with self._lock.native:
            # close() ran in the meantime, and would not find a hub that is made now.
            self._check_open()
            hub = self._hubs.get(state)
            if hub is None:
                # The hubs of other loops have ended with them, or belong to the parent process.
                store = self.new_store(self.settings)
                # The function that makes its client may have closed the log.
                self._check_open()
                hub = Hub(state, store, self.settings)
                self._hubs = {state: hub}
            return hub

    async def ahub(self) -> Hub:
        """Do the same in a thread of its own: to start a bridge's loop takes a wait."""
        # An exit of the function that makes a store's client would end the caller's event loop.
        with CallersCode("the function that makes the log's client", passes=Exception):
            return await loops.run_in_daemon_thread("sseqbridge-start", self.hub)

    def start_reader(self, reader: Reader) -> None:
        """Start a reader in the caller's context."""
        self._current_bridge().start(reader.state, reader)

    def run(self, action: Callable[[Hub], Coroutine[Any, Any, T]]) -> T:
        """Run an action on the loop, and wait for its value. Raises the action's error, or BridgeClosedError."""
        return self.value_of(LoopCall(self.hub(), action))

    def call(self, hub: Hub, action: Callable[[Hub], Coroutine[Any, Any, T]]) -> LoopCall[T]:
        """Return a call for value_of() or avalue_of(), which was not started."""
        return LoopCall(hub, action)

    def value_of(self, call: LoopCall[T]) -> T:
        """Start a call, and wait for its value. Raises the action's error, or BridgeClosedError."""
        try:
            self._current_bridge().start(call.state, call)
            return call.value(call.result.receive())
        except BaseException:
            call.abort()
            raise

    async def arun(self, action: Callable[[Hub], Coroutine[Any, Any, T]]) -> T:
        """Do the same in a coroutine."""
        return await self.avalue_of(LoopCall(await self.ahub(), action))

    async def avalue_of(self, call: LoopCall[T]) -> T:
        """Do the same in a coroutine."""
        try:
            self._current_bridge().start(call.state, call)
            return call.value(await call.result.areceive())
        except BaseException:
            call.abort()
            raise

    def close(self) -> None:
        """Close the hub, and wait for it, except on a bridge's own thread. Idempotent."""
        self.is_closed = True
        # Under the lock, after which no hub is made.
        with self._lock.native:
            hubs = tuple(self._hubs.values())
        this = fork.process_token()
        for hub in hubs:
            if hub.state.process == this and not hub.loop.is_closed():
                # The end of the bridge closes the hub too.
                with contextlib.suppress(BridgeClosedError):
                    self._close(LoopCall(hub, Hub.aclose, is_of_hub=False))
        # Last: after an interrupt, close() can be called again.
        self._hubs = {}

    def _close(self, closing: LoopCall[None]) -> None:
        if loops.in_own_loop():
            self._current_bridge().start(closing.state, closing)
        else:
            self.value_of(closing)
