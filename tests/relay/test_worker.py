"""IterableWorker: the thread that runs the iterable of a relay."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator

import pytest

from sseqbridge import UsageError
from sseqbridge._engine.channel import End
from sseqbridge._streams.worker import IterableWorker


def test_iterable_that_reads_its_own_relay_is_a_usage_error() -> None:
    """It would wait for itself."""

    def items() -> Iterator[str]:
        yield "first"
        worker.receive(None)

    worker = IterableWorker[str](
        items(), lambda item: (item, 1), max_buffered=10, context=contextvars.copy_context()
    )
    assert worker.receive(30) == "first"
    end = worker.receive(30)
    assert isinstance(end, End)
    with pytest.raises(UsageError, match="must not read the relay that runs it"):
        raise end.error or AssertionError
    worker.close()
