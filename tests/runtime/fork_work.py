"""The function that processes of multiprocessing run; a module, since they import it."""

from __future__ import annotations

from typing import Any

from sseqbridge import request_sse

__all__ = ["first_items"]


def first_items(url: str, count: int) -> list[Any]:
    """Return the first items of a stream."""
    with request_sse(url) as (_, _, it):
        return [next(it) for _ in range(count)]
