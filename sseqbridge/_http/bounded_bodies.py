"""Bounds for the bodies that an HTTP client reads itself: for its auth flow, and in its event hooks.

httpx reads the whole body of a response when an auth flow yields another request, when an auth sets
`requires_response_body`, and when an event hook calls `aread()`. This module replaces the stream of such a response
by one that ends after `MAX_BODY_BYTES` decompressed bytes or `BODY_SECONDS`. It uses the public interface of httpx
(or httpx2) alone: `Response.stream`, `Auth.async_auth_flow`. Runs on the event loop's thread.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import anyio

from sseqbridge._exceptions import CallbackError, ProtocolError
from sseqbridge._runtime.callbacks import guarded_coroutine_function

from .content_encoding import BodyDecoder, body_decoder
from .media_types import is_event_stream_type, is_line_type

__all__ = [
    "BODY_SECONDS",
    "MAX_BODY_BYTES",
    "MAX_REQUESTS",
    "bounded_auth",
    "bounded_hooks",
    "errors_of_hooks_pass",
    "is_cut",
    "unbounded_stream",
]

# The most decompressed bytes of an error response's body that are kept, and the time limit for reading them.
MAX_BODY_BYTES = 1024 * 1024
BODY_SECONDS = 10.0

# The most requests that an auth flow may send.
MAX_REQUESTS = 20

# The most that httpx decompresses at a time: deflate expands it by a factor of a thousand at most.
_COMPRESSED_BYTES = 1024

_SLICE_BYTES = 64 * 1024

_HOOK = "an event hook of the HTTP client"
Hook = Callable[[Any], Awaitable[None]]
_errors_pass: ContextVar[bool] = ContextVar("sseqbridge-errors-of-hooks-pass", default=False)


class _BoundedBody:
    """The body of one response, cut off if it is too long or too slow.

    Instances also inherit from the AsyncByteStream of httpx or httpx2; see `_with_base`.
    """

    def __init__(self, stream: Any, content_encoding: str, *, seconds: float | None) -> None:
        self.stream = stream
        self.is_cut = False
        # Whether a read of the body has failed.
        self.has_failed = False
        self._content_encoding = content_encoding
        self._seconds = seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            decoder = body_decoder(self._content_encoding, _SLICE_BYTES)
        except ProtocolError:
            # httpx may support the encoding, but its decoders are not bounded.
            self.is_cut = True
            return
        is_compressed = type(decoder) is not BodyDecoder
        deadline = None if self._seconds is None else anyio.current_time() + self._seconds
        chunks = self.stream.__aiter__()
        left = MAX_BODY_BYTES
        while (chunk := await self._next(chunks, deadline)) is not None:
            size = _COMPRESSED_BYTES if is_compressed else left
            for start in range(0, len(chunk), size):
                piece = chunk[start : start + size]
                try:
                    left -= sum(map(len, decoder.slices(piece)))
                except ProtocolError:
                    # The corrupt piece is not passed on: httpx's decoder would raise.
                    left = 0
                else:
                    yield piece
                if left <= 0:
                    self.is_cut = True
                    return

    async def _next(self, chunks: AsyncIterator[bytes], deadline: float | None) -> bytes | None:
        """Return the next chunk; None at the end or after the deadline."""
        # A cancel scope must not stay open across the `yield` above.
        with anyio.move_on_after(None if deadline is None else deadline - anyio.current_time()):
            try:
                return await chunks.__anext__()
            except StopAsyncIteration:
                return None
            except Exception:
                self.has_failed = True
                raise
        self.is_cut = True
        return None

    async def aclose(self) -> None:
        await self.stream.aclose()


class _BoundedAuth:
    """An auth whose flow receives bounded bodies and sends a bounded number of requests.

    Instances also inherit from the Auth of httpx or httpx2; see `_with_base`.
    """

    def __init__(self, auth: Any, package: Any) -> None:
        self._auth = auth
        self._package = package

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        flow = self._auth.async_auth_flow(request)
        try:
            with _faults_of_auth(self._package):
                request = await flow.__anext__()
            for _ in range(MAX_REQUESTS):
                response = yield request
                _bound_body(self._package, response)
                try:
                    with _faults_of_auth(self._package, response.stream):
                        request = await flow.asend(self._for_flow(response))
                except StopAsyncIteration:
                    return
        finally:
            await flow.aclose()
        raise CallbackError(f"auth must send at most {MAX_REQUESTS} requests, and yielded another one")

    def _for_flow(self, response: Any) -> Any:
        """Return the response for the flow; without its body if it is a stream, which may have no end."""
        if not _is_stream(response):
            return response
        headers = response.headers.copy()
        headers.pop("Content-Encoding", None)
        return self._package.Response(
            response.status_code, headers=headers, request=response.request, extensions=response.extensions
        )


@contextlib.contextmanager
def _faults_of_auth(package: Any, body: Any = None) -> Iterator[None]:
    """Raise CallbackError for an error of an auth's own that would look like one of the request's connection.

    An auth may read a file, or request a token with another client. It has no fault in an error of `body`, which it
    reads too.
    """
    try:
        yield
    except (OSError, package.HTTPError) as exc:
        if body is not None and body.has_failed:
            raise
        raise CallbackError(f"auth raised {type(exc).__name__}") from exc


def bounded_auth(package: Any, auth: Any) -> Any:
    """Return an auth of `package` (httpx or httpx2) that bounds the bodies and requests of `auth`, or a function."""
    if hasattr(auth, "async_auth_flow"):
        return _with_base(_BoundedAuth, package.Auth)(auth, package)

    def signed(request: Any) -> Any:
        with _faults_of_auth(package):
            return auth(request)

    return signed


def bounded_hooks(package: Any, hooks: Mapping[str, list[Hook]]) -> dict[str, list[Hook]]:
    """Return event hooks for a client of `package` that call `hooks`, which get bounded bodies.

    Their errors are CallbackErrors: an OSError would look like one of the connection.
    """

    async def bound(response: Any) -> None:
        _bound_body(package, response)

    guarded = {kind: [_guarded(hook) for hook in those] for kind, those in hooks.items()}
    return {**guarded, "response": [bound, *guarded["response"]]}


@contextlib.contextmanager
def errors_of_hooks_pass() -> Iterator[None]:
    """Let the errors of bounded_hooks() pass in the block: another client is to get them as they are."""
    token = _errors_pass.set(True)
    try:
        yield
    finally:
        _errors_pass.reset(token)


def _guarded(hook: Hook) -> Hook:
    guarded = guarded_coroutine_function(hook, _HOOK)

    async def call(message: Any) -> None:
        # Of a response, which the hook may replace.
        body = message.stream
        if _errors_pass.get():
            await hook(message)
            return
        try:
            await guarded(message)
        except CallbackError as exc:
            if isinstance(body, _BoundedBody) and body.has_failed:
                # An error of the connection, which the hook reads from.
                raise exc.__cause__ or exc from None
            raise

    return call


def _bound_body(package: Any, response: Any) -> None:
    """Bound a response's body. Idempotent."""
    if not isinstance(response.stream, _BoundedBody):
        # A hook that reads a whole event stream is subject to the stream's own time limits.
        seconds = None if _is_stream(response) else BODY_SECONDS
        make = _with_base(_BoundedBody, package.AsyncByteStream)
        response.stream = make(response.stream, response.headers.get("content-encoding", ""), seconds=seconds)


def unbounded_stream(response: Any) -> Any:
    """Return the response's stream as the transport made it."""
    stream = response.stream
    return stream.stream if isinstance(stream, _BoundedBody) else stream


def is_cut(response: Any) -> bool:
    """Whether the HTTP client has read the body, and the bounds have cut it off."""
    stream = response.stream
    return isinstance(stream, _BoundedBody) and stream.is_cut


@functools.lru_cache(maxsize=8)
def _with_base(kind: type, base: type) -> Any:
    # httpx and httpx2 check for their own base classes, and httpx2 need not be installed.
    return type(kind.__name__, (kind, base), {})


def _is_stream(response: Any) -> bool:
    content_type = response.headers.get("content-type", "")
    return 200 <= response.status_code < 300 and (is_event_stream_type(content_type) or is_line_type(content_type))
