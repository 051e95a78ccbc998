"""One interface to request_sse and arequest_sse, so that a test covers both.

The loop of an asynchronous caller runs on the test's thread, and only during a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from sseqbridge import SSEError, arequest_sse, request_sse
from sseqbridge._streams.stream import reader_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Caller", "OpenStream", "Requester", "Response"]

T = TypeVar("T")

_WIND_UP_SECONDS = 10.0


class Caller:
    """Calls functions, or runs coroutines on its own loop, which runs only during a call."""

    def __init__(self, *, is_async: bool) -> None:
        self.is_async = is_async
        self._loop = asyncio.new_event_loop() if is_async else None

    def run(self, result: Any) -> Any:
        """Return a function's result, or that of a coroutine."""
        return result if self._loop is None else self._loop.run_until_complete(result)

    def run_blocking(self, function: Callable[..., T], *args: object) -> T:
        """Call a function that waits, and return its result. The loop runs on, and drains closed streams."""
        result: T = self.run(asyncio.to_thread(function, *args) if self.is_async else function(*args))
        return result

    def close(self) -> None:
        if self._loop is not None:
            self._loop.run_until_complete(self._wind_up(self._loop))
            self._loop.close()

    @staticmethod
    async def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
        await loop.shutdown_asyncgens()
        # On a busy machine, cancelled tasks may end after the call that cancelled them has returned.
        if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(tasks, timeout=_WIND_UP_SECONDS)
        await loop.shutdown_default_executor()


class Requester(Caller):
    """Sends requests with request_sse or arequest_sse, with fixed `options`."""

    def __init__(self, *, is_async: bool, **options: Any) -> None:
        super().__init__(is_async=is_async)
        self._options = options

    def __call__(self, url: Any, headers: Any = None, data: Any = None, **options: Any) -> Response:
        function: Any = arequest_sse if self.is_async else request_sse
        return Response(self, self.run(function(url, headers, data, **self._options, **options)))


class OpenStream:
    """A stream of either function. `with` closes it."""

    def __init__(self, caller: Caller, events: Any) -> None:
        self._caller = caller
        self.events = events

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._caller.run(self.events.aclose() if self._caller.is_async else self.events.close())

    def next(self, timeout: float | None = None) -> Any:
        return self._caller.run(self.events.next(timeout))

    def items(self) -> list[Any]:
        """Read the stream to its end in a loop."""
        return list(self._caller.run(self._collect())) if self._caller.is_async else list(self.events)

    def fail(self) -> tuple[list[Any], SSEError]:
        """Read the stream to its error. Returns the items before it, and the error."""
        items = []
        with pytest.raises(SSEError) as caught:
            while True:
                items.append(self.next())
        return items, caught.value

    def settle(self) -> None:
        """Let the stream's loop run all due callbacks, and the callbacks that they schedule."""
        for _ in range(5):
            if self._caller.is_async:
                self._caller.run(asyncio.sleep(0))
            else:
                loop = reader_of(self.events).cursor.subscription.loop
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(30)

    def _collect(self) -> Coroutine[Any, Any, list[Any]]:
        async def collect() -> list[Any]:
            return [item async for item in self.events]

        return collect()


class Response(OpenStream):
    """The response of either function."""

    def __init__(self, requester: Caller, response: Any) -> None:
        self.response = response
        self.status, self.headers, events = response
        super().__init__(requester, events)

    def raise_for_status(self, target: Any = None) -> Any:
        return self._caller.run((target or self.response).raise_for_status())
