"""The end of a body that ends in mid-block: which of it is an item, the stream's end, or lost.

Runs on the loop thread.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sseqbridge._exceptions import TransportError
from sseqbridge._runtime import loops
from sseqbridge._sse.dialects import is_response
from sseqbridge._sse.events import ServerSentEvent
from sseqbridge._sse.json_lines import is_json, torn_line_error
from sseqbridge._sse.provider_errors import escaped, quoted

from .batches import is_complete_json

if TYPE_CHECKING:
    from sseqbridge._http.request import RequestOptions

    from .batches import Batch, BatchReader

__all__ = ["last_batch", "warn_of_dropped_event"]

T = TypeVar("T")

logger = logging.getLogger("sseqbridge")

# Up to this size, data is decoded on the loop's thread.
_SMALL_JSON = 64 * 1024


async def last_batch(
    reader: BatchReader, options: RequestOptions, target: str, *, broken_by: TransportError | None = None
) -> Batch | None:
    """Return the batch of what came after the last complete block or line; None if that is nothing, or is dropped.

    `broken_by` is the error if the connection has failed. In an event stream the end marker counts, and so does a whole
    JSON-RPC response that ends the stream. In JSON mode a whole object or array is an item, unless the stream
    reconnects, since the event may come again. A `done` function is asked by the consumer, unless the connection is
    broken. Of JSON Lines, a last document without its line end is an item.

    Raises TruncatedStreamError for an incomplete document of JSON Lines; if the connection is broken, `broken_by` gets
    the document's text.
    """
    if options.format == "jsonl":
        return await _last_line(reader, target, broken_by)
    taken = reader.take_incomplete()
    if taken is None:
        return None
    rules = options.rules
    event, is_line_complete = taken
    is_object = await _in_thread_if_large(len(event.data), is_complete_json, event.data)
    is_half_json = not is_object and rules.is_json and event.data.lstrip()[:1] in ("{", "[")
    is_whole = is_object or (is_line_complete and not is_half_json) or rules.is_end_marker(event)
    if is_whole and reader.end_at(event):
        return reader.last_batch(event) if reader.done_event is None else None
    if rules.is_heartbeat(event):
        return None
    if broken_by is not None:
        if rules.ends_at_response and await holds_response(event):
            return reader.last_batch(event, is_incomplete=True)
        return None
    if is_object and rules.is_json and options.reconnect is None:
        return reader.last_batch(event)
    if rules.asks_consumer:
        return reader.last_batch(event, is_incomplete=True)
    warn_of_dropped_event(target, event)
    return None


async def _last_line(reader: BatchReader, target: str, broken_by: TransportError | None) -> Batch | None:
    taken = reader.take_rest(is_broken=broken_by is not None)
    if taken is None:
        return None
    text, may_be_whole = taken
    event = ServerSentEvent(data=text)
    # The end marker need not be JSON.
    if reader.end_at(event):
        return reader.last_batch(event) if reader.done_event is None else None
    if may_be_whole and await _in_thread_if_large(len(text), is_json, text):
        return reader.last_batch(event)
    if broken_by is None:
        raise torn_line_error(f"{target}: the stream ended within a JSON document", text)
    broken_by.torn_line = text
    broken_by.args = (f"{broken_by}, within a JSON document: {escaped(text)}", *broken_by.args[1:])
    return None


async def _in_thread_if_large(size: int, decode: Callable[..., T], *args: object) -> T:
    """Call a function that decodes `size` bytes of JSON: in a thread if that would block the loop."""
    if size <= _SMALL_JSON:
        return decode(*args)
    return await loops.run_in_daemon_thread("sseqbridge-json", decode, *args)


async def holds_response(event: ServerSentEvent) -> bool:
    """Whether the event's data is a JSON-RPC response."""
    return await _in_thread_if_large(len(event.data), _is_response, event.data)


def _is_response(data: str) -> bool:
    return is_complete_json(data) and is_response(json.loads(data))


def warn_of_dropped_event(target: str, event: ServerSentEvent) -> None:
    """Log that the event of a last block without its blank line is dropped."""
    logger.warning(
        '%s: the stream ended within an event (type "%s", %d characters of data so far), which is dropped, '
        "as the event stream format requires",
        target,
        quoted(event.event),
        len(event.data),
    )
