"""Relays: a stream is forwarded to an HTTP client. `frames` works with any WSGI server, `aframes` with ASGI.

    from functools import partial

    from sseqbridge import relay, request_sse

    return relay.flask.stream_response(partial(request_sse, url, headers, data))

`EVENT_STREAM_HEADERS` are the headers of such a response, for a framework of your own.

`relay.flask`, `relay.django` and `relay.starlette` have a function for their framework. Each is imported on
first access, and only it imports its framework.
"""

# Modules: `flask.py`, `django.py` and `starlette.py` make responses of these frameworks over `Frames`
# (`_sync_frames.py`) or `AsyncFrames` (`_async_frames.py`, with `_base_frames.py` in common), which send events and
# heartbeats, and which `_frames.py` makes for other frameworks. Their source is a stream (`_source.py`), an iterable
# (`_iterables.py`), or a function that returns one of the two (`_opening.py`); `_upstream.py` decides which.
# `_options.py` declares the options, `_response.py` makes status and headers, `_writer.py` encodes items,
# `_refused.py` and `_upstream_errors.py` recognize refusals and errors of an upstream. `_disconnect.py` checks a WSGI
# server's socket, `_ending.py` calls `on_end`, `_live.py` ends all relays. `browser/` is no Python: relay.js, which
# reads a relay in a page, and its types.

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._async_frames import AsyncFrames
from ._disconnect import reader_left
from ._ending import RelayEnd
from ._frames import aframes, frames
from ._live import end_all
from ._response import EVENT_STREAM_HEADERS
from ._sync_frames import Frames

if TYPE_CHECKING:
    from . import django, flask, starlette

__all__ = [
    "EVENT_STREAM_HEADERS",
    "AsyncFrames",
    "Frames",
    "RelayEnd",
    "aframes",
    "django",
    "end_all",
    "flask",
    "frames",
    "reader_left",
    "starlette",
]

_FRAMEWORKS = ("django", "flask", "starlette")
# The package whose import fails first if the framework is missing, where that is another one.
_IMPORTED_FIRST = {"django": "asgiref"}


def __getattr__(name: str) -> Any:
    if name not in _FRAMEWORKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module(f".{name}", __name__)
    except ModuleNotFoundError as exc:
        if exc.name not in (name, _IMPORTED_FIRST.get(name)):
            raise
        raise ImportError(f"relay.{name} needs {name.title()}: pip install 'sseqbridge[{name}]'", name=name) from exc
