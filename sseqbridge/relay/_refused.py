"""Responses of an upstream that a relay does not forward as a stream: refusals, and a 204, after which nothing follows.

Called in the thread or coroutine that reads the relay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sseqbridge._exceptions import StatusError
    from sseqbridge._streams.reader import ItemReader

__all__ = ["arefusal", "is_refusal", "refusal", "refused_reader"]


def refused_reader(reader: ItemReader[Any]) -> ItemReader[Any] | None:
    """Return the reader of a response that is not forwarded as a stream, None for all others.

    A 205 has no body (RFC 9110, 15.3.6), whatever its type says.
    """
    head = reader.cursor.head
    return None if head.is_stream and head.status != 205 else reader


def is_refusal(refused: ItemReader[Any] | None) -> bool:
    """Whether a response that is not forwarded is a refusal, and no 204."""
    return refused is not None and refused.cursor.head.status != 204


def refusal(refused: ItemReader[Any], timeout: float | None = None) -> StatusError | None:
    """Return the error of a refusal with its body; None if `timeout` elapsed first."""
    return refused.refusal(timeout) if refused.cursor.is_refused else refused.cursor.status_error()


async def arefusal(refused: ItemReader[Any]) -> StatusError:
    """Do the same in a coroutine."""
    return await refused.arefusal() if refused.cursor.is_refused else refused.cursor.status_error()
