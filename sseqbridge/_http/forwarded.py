"""Requests that a client of httpx or httpx2 built, and that another transport sends: no header is added or removed.

Both packages demand objects of their own classes, so a response and its errors have to come from the package of the
request. httpx2 need not be installed: its names are looked up in the package that defines the request's class.
Everything is written once, in the caller's thread, and used on the event loop's thread afterwards.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import httpx

from sseqbridge._checks import name_of_type
from sseqbridge._exceptions import UsageError
from sseqbridge._runtime.callbacks import CallersCode
from sseqbridge._sse.provider_errors import quoted

__all__ = ["ForwardedRequest", "PartSource", "error_of", "package_of", "with_base"]

_PACKAGES = ("httpx", "httpx2")

# The extensions that httpx's transports know.
_EXTENSIONS = frozenset({"timeout", "trace", "sni_hostname", "target"})


def package_of(request: Any) -> Any:
    """Return the package of a request's class, httpx or httpx2. Raises UsageError for another object."""
    kind: Any = type(request)
    return _package(kind)


@functools.lru_cache(maxsize=32)
def _package(kind: type) -> Any:
    for base in kind.__mro__:
        name = base.__module__.partition(".")[0]
        if base.__name__ == "Request" and name in _PACKAGES:
            return sys.modules[name]
    raise UsageError(f"`request` must be an httpx.Request or httpx2.Request, got {name_of_type(kind)}")


@functools.lru_cache(maxsize=32)
def with_base(kind: type, base: type) -> Any:
    """Return a subclass of both: each package checks for base classes of its own."""
    return type(kind.__name__, (kind, base), {"__slots__": ()} if hasattr(kind, "__slots__") else {})


def error_of(package: Any, error: BaseException) -> BaseException:
    """Return the error of `package` for an error of httpx or httpx2; other errors unchanged.

    Control characters in its message are replaced: httpx quotes the text of a proxy there.
    """
    message = str(error)
    safe = quoted(message, len(message))
    for kind in type(error).__mro__:
        if kind.__module__.partition(".")[0] in _PACKAGES:
            own = getattr(package, kind.__name__, None)
            if own is type(error) and safe == message:
                return error
            if own is None:
                # Internal to one package.
                continue
            made: BaseException = own(safe)
            made.__cause__ = error
            return made
    return error


class PartSource(Protocol):
    """Where the parts of a body come from that another thread produces."""

    def parts(self) -> AsyncIterator[bytes]:
        """Yield the parts. Raises to abort the request."""


class _ProducedBody(httpx.AsyncByteStream):
    """A body whose parts another thread produces: an iterator of the caller's is not run on the event loop."""

    def __init__(self, source: PartSource) -> None:
        self._source = source

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._source.parts()


class ForwardedRequest:
    """A request as the library's transport reads it, whichever package it comes from.

    `package` is that package. `source`, if it is not None, replaces a body that is not in memory.
    """

    __slots__ = ("extensions", "headers", "method", "package", "stream", "url")

    def __init__(self, request: Any, package: Any, source: PartSource | None = None) -> None:
        self.package = package
        self.method: str = request.method
        self.url = request.url
        self.headers = request.headers
        # SDKs keep notes of their own among the extensions.
        self.extensions: dict[str, Any] = {
            name: value for name, value in request.extensions.items() if name in _EXTENSIONS
        }
        if "trace" in self.extensions:
            self.extensions["trace"] = _asynchronous(self.extensions["trace"])
        self.stream: httpx.AsyncByteStream
        if source is not None:
            self.stream = _ProducedBody(source)
        elif package is httpx:
            self.stream = request.stream
        else:
            self.stream = httpx.ByteStream(b"".join(request.stream))

    @staticmethod
    def has_body_in_memory(request: Any, package: Any) -> bool:
        """Whether the body of a request is bytes, which can be read on any thread, and again."""
        return isinstance(request.stream, package.ByteStream)

    def rebuilt(self, package: Any) -> Any:
        """Return the same request as an object of `package`, for one of its asynchronous clients."""
        # Without user and password: the client that built the request has handled them.
        url = package.URL(str(self.url.copy_with(userinfo=b"")))
        stream: Any = self.stream
        if package is not httpx:
            in_memory = isinstance(stream, httpx.ByteStream)
            stream = package.ByteStream(b"".join(stream)) if in_memory else _rebased(stream, package)
        return package.Request(
            self.method, url, headers=self.headers.raw, stream=stream, extensions=self.extensions
        )


def _rebased(stream: httpx.AsyncByteStream, package: Any) -> Any:
    return with_base(_Rebased, package.AsyncByteStream)(stream)


class _Rebased:
    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._stream.__aiter__()


def _asynchronous(trace: Callable[[str, Any], object]) -> Callable[[str, Any], Any]:
    """Return a synchronous client's `trace` extension as the asynchronous function that httpcore demands here."""

    async def traced(name: str, info: Any) -> None:
        with CallersCode("the `trace` extension", passes=Exception):
            trace(name, info)

    return traced
