"""The functions that make the frames of a relay: for users, and for the modules of the frameworks. No state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ._async_frames import AsyncFrames
from ._disconnect import disconnect_flag, stops_threads
from ._ending import Ending
from ._options import AsyncRelayOptions, RelayOptions, SyncRelayOptions, check_synchronous, describe, relay_options
from ._refused import is_refusal, refusal
from ._sync_frames import Frames
from ._upstream import Upstream
from ._writer import Writer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._opening import Caller

__all__ = ["aframes", "arelay", "frames", "relay"]


def frames(stream: Any, *, environ: Mapping[str, Any] | None = None, **options: Unpack[SyncRelayOptions]) -> Frames:
    """Return an iterator of bytes that a WSGI application can return; `close()` aborts the upstream.

        def application(environ, start_response):
            start_response("200 OK", list(EVENT_STREAM_HEADERS.items()))
            return frames(request_sse(url, headers, data), environ=environ)

    `stream` is the result of request_sse, whose events are forwarded unchanged, with their names and ids. It
    may also be any iterable, which runs in a thread of its own and is closed at its next `yield` when the
    client disconnects. Its items are str, dict or list (sent as JSON), ServerSentEvent, Comment, or None for
    nothing.

    `stream` may also be a function without arguments that returns one of these, such as one that calls request_sse.
    It is called at the first read, or by `open()`; once the client disconnects, its request is aborted.

    `environ` is the request's WSGI environment; without it there is no `probe`.

    If the stream, the function or `map` fails, the client gets an event named "error" (see `error`); the details are
    logged.

    Raises UsageError for arguments that cannot work, and for a stream that was read to its end; StatusError if
    the upstream's status is not 200.
    """
    with Upstream(stream) as upstream:
        checked = relay_options("frames", SyncRelayOptions, options)
        check_synchronous(checked)
        upstream.check_synchronous()
        refused = upstream.refused
        if refused is not None and is_refusal(refused):
            error = refusal(refused)
            assert error is not None
            raise error
        return relay(upstream, checked, environ)


def aframes(stream: Any, **options: Unpack[AsyncRelayOptions]) -> AsyncFrames:
    """Return the same as `frames` for an asynchronous server: an asynchronous iterator with `aclose()`.

        async for piece in aframes(await arequest_sse(url, headers, data)):
            await send({"type": "http.response.body", "body": piece, "more_body": True})

    `stream` may also be the result of arequest_sse, or an asynchronous iterable, which runs in a task of its
    own, and is closed by cancelling the task; or a coroutine function that returns one of these. `map` and `on_item`
    are called on the event loop, except for an iterable; a plain function in place of a stream in a thread.

    Raises UsageError for arguments that cannot work; `open()`, or the first read, StatusError if the upstream's status
    is not 200.
    """
    with Upstream(stream) as upstream:
        return arelay(upstream, relay_options("aframes", AsyncRelayOptions, options))


describe(frames, SyncRelayOptions, without=("refusal",))
describe(aframes, AsyncRelayOptions, without=("refusal",))


def relay(
    upstream: Upstream,
    options: RelayOptions,
    environ: Mapping[str, Any] | None,
    after_work: Callable[[], object] | None = None,
    ending: type[Ending] = Ending,
) -> Frames:
    """Return the frames of an upstream for a WSGI server.

    `after_work` is called in the worker thread of an iterable after its end. `ending` says how `on_end` is called.
    """
    writer = Writer(options)
    disconnected = disconnect_flag(environ, options["probe"])
    source = upstream.source(writer, after_work, early=options["early"], cancel=disconnected)
    end = ending(options["on_end"])
    return Frames(source, writer, options, end, disconnected, must_wait=stops_threads(environ))


def arelay(
    upstream: Upstream,
    options: RelayOptions,
    after_work: Callable[[], object] | None = None,
    ending: type[Ending] = Ending,
    caller: Caller | None = None,
) -> AsyncFrames:
    """Return the frames of an upstream for an ASGI server.

    `caller` awaits the call of a plain function that opens the upstream; None: in a thread of its own.
    """
    writer = Writer(options)
    source = upstream.async_source(writer, after_work, early=options["early"], caller=caller)
    return AsyncFrames(source, writer, options, ending(options["on_end"]))
