"""The base class of the tasks that send a request and transfer its response, with the way to cancel them.

Everything runs on the loop thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from sseqbridge._http.errors import CLIENT_CODE
from sseqbridge._runtime.callbacks import CallersCode

from .loop_state import LoopTask

if TYPE_CHECKING:
    from .loop_state import LoopState

__all__ = ["TransferTask"]


class TransferTask(LoopTask):
    """A task that runs `_transfer()` so that an abort can cancel it."""

    def __init__(self, state: LoopState) -> None:
        super().__init__(state)
        # Cancels _transfer while it runs.
        self._cancel_transfer: Callable[[], object] | None = None

    @property
    def target(self) -> str:
        """The request's URL, as messages may show it."""
        raise NotImplementedError

    async def _transfer(self) -> None:
        """Send the request, and transfer its response into the channel."""
        raise NotImplementedError

    async def _transfer_cancellably(self, *, is_direct: bool) -> None:
        """Run `_transfer()`. `is_direct`: the library's own transport sends the request, without code of the caller's.

        Other clients may run such code, which could end or block the loop.
        """
        if is_direct:
            # Not `self.task`, which an eager task factory has not returned yet.
            task = asyncio.current_task()
            assert task is not None
            self._cancel_transfer = task.cancel
            await self._transfer()
            return
        # Not the task's own cancel(): it passes through the shields under which httpcore closes connections,
        # other streams' among them, and would leave those connections open.
        watch = self.state.loop_watch
        with anyio.CancelScope() as scope:
            self._cancel_transfer = scope.cancel
            with CallersCode(CLIENT_CODE, passes=Exception):
                await (self._transfer() if watch is None else watch.steps_of(self._transfer(), self._describe_client))

    def _describe_client(self) -> str:
        return f"what {CLIENT_CODE} did for {self.target}"
