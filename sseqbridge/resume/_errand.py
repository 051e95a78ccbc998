"""What a caller has done once in the loop, and waits for.

Which thread writes what: `belong_to` is called before anybody else knows the call; `_task` is
set in the loop's thread. The result goes through a channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from sseqbridge._engine.channel import Channel, End
from sseqbridge._exceptions import BridgeClosedError

from ._hub import Hub
from ._producer import Producer

__all__ = ["LoopCall"]

T = TypeVar("T")


class LoopCall(Generic[T]):
    """Something to be done once in the loop, whose result somebody else waits for."""

    def __init__(self, action: Callable[[Hub], Coroutine[Any, Any, T]], *, is_of_hub: bool = True) -> None:
        self._action = action
        # Whether it ends with the hub's other tasks.
        self._is_of_hub = is_of_hub
        self._task: asyncio.Task[None] | None = None

    def belong_to(self, hub: Hub) -> None:
        """Say where it is done."""
        self._hub = hub
        self.result: Channel[Any] = Channel(hub.loop, 1)

    def start(self) -> None:
        """Do it. In the loop's thread."""
        if self._is_of_hub and self._hub.is_closing:
            # By another thread, meanwhile.
            self._end_closed()
            return
        spawn = self._hub.spawn if self._is_of_hub else self._hub.loop.create_task
        self._task = spawn(self._do())

    async def _do(self) -> None:
        try:
            value = await self._action(self._hub)
        except asyncio.CancelledError:
            self._end_closed()
            raise
        except BaseException as exc:
            self.result.end(End("error", exc))
            return
        if self.result.closed and isinstance(value, Producer):
            # Nobody is there to begin.
            value.abort()
        self.result.send_nowait((value,))

    def _end_closed(self) -> None:
        self.result.end(End("error", BridgeClosedError("the bridge, or the log, was closed meanwhile")))

    def value(self, entry: Any) -> T:
        """Return the result, or raise what came instead."""
        if isinstance(entry, tuple) and not isinstance(entry, End):
            return entry[0]  # type: ignore[no-any-return]
        raise entry.error

    def abort(self) -> None:
        """Nobody waits any more."""
        self.result.close()
