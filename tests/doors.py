"""The two doors, request_sse and arequest_sse, as one: what a test says of it holds for both.

Rule: the asynchronous door's loop runs only while something is waited for, in the thread of the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sseqbridge import SSEError, arequest_sse, request_sse

__all__ = ["Answer", "Door"]


class Door:
    """Calls request_sse, or arequest_sse on a loop of its own, always with `options` too."""

    def __init__(self, *, is_async: bool, **options: Any) -> None:
        self.is_async = is_async
        self._loop = asyncio.new_event_loop() if is_async else None
        self._options = options

    def __call__(self, url: Any, headers: Any = None, data: Any = None, **options: Any) -> Answer:
        function: Any = arequest_sse if self.is_async else request_sse
        return Answer(self, self.run(function(url, headers, data, **self._options, **options)))

    def run(self, result: Any) -> Any:
        """Return a function's result, or what its coroutine gives."""
        return result if self._loop is None else self._loop.run_until_complete(result)

    def meanwhile(self, function: Callable[[], object]) -> None:
        """Call a function that waits, while the streams go on."""
        self.run(asyncio.to_thread(function) if self.is_async else function())

    def close(self) -> None:
        if self._loop is not None:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()


class Answer:
    """What either function returned. `with` closes it."""

    def __init__(self, door: Door, response: Any) -> None:
        self._door = door
        self.response = response
        self.status, self.headers, self.events = response

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._door.run(self.events.aclose() if self._door.is_async else self.events.close())

    def next(self, timeout: float | None = None) -> Any:
        return self._door.run(self.events.next(timeout))

    def items(self) -> list[Any]:
        """Read the stream to its end, in a loop."""
        return list(self._door.run(self._collect())) if self._door.is_async else list(self.events)

    def fail(self) -> tuple[list[Any], SSEError]:
        """Read the stream to its error; return the items before it, and the error."""
        items = []
        with pytest.raises(SSEError) as caught:
            while True:
                items.append(self.next())
        return items, caught.value

    def raise_for_status(self, target: Any = None) -> Any:
        return self._door.run((target or self.response).raise_for_status())

    def _collect(self) -> Coroutine[Any, Any, list[Any]]:
        async def collect() -> list[Any]:
            return [item async for item in self.events]

        return collect()
