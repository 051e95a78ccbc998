"""The options of one attempt of a request whose headers a function of the caller's returns.

The function may block, so an event loop runs it in a thread of its own. Whatever it raises is a CallbackError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sseqbridge._runtime import loops
from sseqbridge._runtime.callbacks import CallersCode

if TYPE_CHECKING:
    from sseqbridge._http.request import RequestOptions

__all__ = ["options_of_attempt"]


async def options_of_attempt(options: RequestOptions) -> RequestOptions:
    """Return the options of the next attempt, on an event loop.

    Raises CallbackError if the function fails, UsageError if it returns headers that cannot be sent.
    """
    if options.new_headers is None:
        return options
    # An exit that the function raises must not end the loop.
    with CallersCode("the headers function", passes=Exception):
        return await loops.run_in_daemon_thread("sseqbridge-headers", options.for_next_attempt)
