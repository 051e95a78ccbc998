"""The state of event loops that belong to callers: arequest_sse runs on the loop of its caller.

There is one state for each loop, made by its first request and closed with the loop. All of it runs on
the loop's own thread; `_states` is a dict that each thread changes in single, atomic steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from sseqbridge._exceptions import BridgeClosedError
from sseqbridge._http.client import ClientPool
from sseqbridge._runtime import fork

from .loop_state import LoopState

__all__ = ["running_loop_state", "state_of_client"]

_states: dict[asyncio.AbstractEventLoop, LoopState] = {}


def state_of_client(client: Any) -> LoopState:
    """Return a state of the running loop whose requests are sent with the caller's own HTTP client."""
    return LoopState(asyncio.get_running_loop(), ClientPool.of(client))


async def running_loop_state() -> LoopState:
    """Return the running loop's state, which the first call makes."""
    loop = asyncio.get_running_loop()
    inherited = _states.get(loop)
    if inherited is not None and inherited.process != fork.process_token():
        # A forked child continues to use the loop, but the connections are its parent's.
        fork.pin(_states.pop(loop, None))
    if loop not in _states:
        for other in _states.copy():
            if other.is_closed():
                _states.pop(other, None)
        state = _states[loop] = LoopState(loop, ClientPool())
        state.at_loop_end = _close_with_loop(state)
        await state.at_loop_end.__anext__()
    return _states[loop]


async def _close_with_loop(state: LoopState) -> AsyncGenerator[None, None]:
    # asyncio.run() and similar functions close the remaining asynchronous generators before they close
    # the loop. There is no other hook for the end of a loop.
    try:
        yield
    finally:
        # A forked child that ends its parent's loop leaves the streams alone.
        if state.process == fork.process_token():
            _states.pop(state.loop, None)
            await state.aclose(_loop_ended, seconds=0.5)


def _loop_ended() -> BridgeClosedError:
    return BridgeClosedError("the event loop that the stream ran on is ending")
