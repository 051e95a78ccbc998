"""Argument checks and types that every layer uses: `Timeout`, `CancelFlag`, numbers of bytes and seconds.

A wrong argument raises UsageError at the call, before anything is sent. Messages have the form
"`name` must be X, got Y. Do Z." All functions are pure and thread-safe. `NotCopyable` is the base class of the public
objects that own requests, connections or threads, `Immutable` that of those which only describe requests.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, SupportsIndex, TypedDict, TypeGuard

from ._exceptions import UsageError
from ._signatures import with_hints

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "CancelFlag",
    "Immutable",
    "NotCopyable",
    "Timeout",
    "TimeoutLimits",
    "as_timeout",
    "check_bool",
    "check_integer",
    "check_limits",
    "check_method",
    "check_number",
    "check_plain_function",
    "check_seconds",
    "check_url",
    "is_coroutine_function",
    "is_number",
    "is_url",
    "name_of_type",
]


def is_coroutine_function(function: object) -> bool:
    """Whether calling `function` returns a coroutine: also a partial of one, or an object with `async def __call__`."""
    call = getattr(type(function), "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


class CancelFlag(Protocol):
    """Anything with is_set(): a threading.Event, a gevent Event, an asyncio.Event, an object of your own."""

    def is_set(self) -> object:
        """Return whether to abort the request. Called on the loop thread; must not block."""


class NotCopyable:
    """Base of objects with resources. A copy would be a second owner, whose end would end the first one's work."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # Called by copy.copy(), copy.deepcopy() and pickle.
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled: its requests, connections and threads have one owner. "
            "Pass on the object itself, or its items."
        )


class Immutable:
    """Base of immutable objects that may hold credentials. A copy is the object itself; pickle refuses it."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable, {name!r} cannot be set. Make another one.")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable, {name!r} cannot be deleted")

    def _set(self, **values: Any) -> None:
        """Set attributes, in the constructor alone."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled: it may hold credentials and functions. Make one in each process."
        )


class TimeoutLimits(TypedDict, total=False):
    """Time limits in seconds as a mapping, for type checkers; see Timeout."""

    connect: float | None
    read: float | None
    idle: float | None
    total: float | None


_TIMEOUT_BY_NAME = "Name the limit, such as Timeout(read=30), or pass timeout=30 to the request."


@with_hints(
    {
        "pool": "No request waits for a connection of a pool.",
        "timeout": _TIMEOUT_BY_NAME,
        "write": "`read` limits the sending of the request, too.",
    },
    by_name=_TIMEOUT_BY_NAME,
)
@dataclass(frozen=True, kw_only=True)
class Timeout:
    """The time limits of one stream, in seconds; None is no limit.

        request_sse(url, headers, data, timeout=Timeout(connect=5, idle=60, total=600))

    `connect`: until the connection is made, TLS handshake included.
    `read`: without a byte from the upstream, or, while the request is sent, without the upstream accepting one.
    `idle`: without an event, from the response's head on. Comments and heartbeats do not count; the time that
    backpressure from the consumer takes is left out.
    `total`: the whole stream, from the call to the end. The first call of a client's headers function does not count.

    Raises UsageError if a limit is not a number above 0. A limit that elapses raises StreamTimeoutError.
    """

    connect: float | None = 10.0
    read: float | None = 600.0
    idle: float | None = None
    total: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # Infinity is allowed. NaN is not: no comparison with it is true.
            if value is not None and not (is_number(value) and value > 0):
                raise UsageError(
                    f"`timeout.{field.name}` must be a number of seconds above 0, got {value!r}. "
                    "Pass None for no limit."
                )


@functools.lru_cache(maxsize=64, typed=True)
def _timeout_of(seconds: float) -> Timeout:
    return Timeout(connect=seconds, read=seconds)


def as_timeout(value: object) -> Timeout:
    """Return `value` (a Timeout, number, mapping or None) as a Timeout. Raises UsageError for anything else."""
    if isinstance(value, Timeout):
        return value
    if value is None:
        return Timeout(connect=None, read=None)
    if isinstance(value, Mapping):
        unknown = set(value) - {field.name for field in fields(Timeout)}
        if unknown:
            raise UsageError(
                f"the keys of `timeout` must be connect, read, idle or total, got {sorted(map(str, unknown))}"
            )
        return replace(Timeout(), **value)
    if type(value) is float or type(value) is int:
        return _timeout_of(value)
    if isinstance(value, (int, float)):
        return Timeout(connect=value, read=value)
    got = repr(value) if isinstance(value, (str, tuple, list)) else name_of_type(type(value))
    raise UsageError(
        "`timeout` must be a number of seconds, a mapping or a sseqbridge.Timeout, "
        f"got {got}. Pass Timeout(connect=..., read=...)."
    )


def name_of_type(kind: type) -> str:
    """Return the name of a type in messages: with its module, since packages share names such as Timeout and Redis.

    A built-in type has its name alone.
    """
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def is_number(value: object) -> TypeGuard[float]:
    """Return whether `value` is an int or a float. A bool is neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_integer(name: str, value: object, minimum: int, advice: str = "") -> int:
    """Return `value`. Raises UsageError, which ends with `advice`, if it is not an int of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise UsageError(f"`{name}` must be an integer of at least {minimum}, got {value!r}{advice}")
    return value


def check_limits(name: str, value: object) -> int:
    """Return `value`, a number of bytes or objects. Raises UsageError if it is not an int of at least 1."""
    return check_integer(name, value, 1)


def check_bool(name: str, value: object, advice: str = "") -> None:
    """Raise UsageError, which ends with `advice`, if `value` is not a bool."""
    if not isinstance(value, bool):
        raise UsageError(f"`{name}` must be True or False, got {value!r}{advice}")


def check_plain_function(name: str, function: object) -> None:
    """Raise UsageError for a coroutine function."""
    if is_coroutine_function(function):
        raise UsageError(f"`{name}` must be a plain function, got a coroutine function, which is never awaited")


def check_method(method: object) -> str:
    """Return the name of an HTTP method as it was passed. Raises UsageError for another value."""
    if not isinstance(method, str) or not method.isascii() or not method.isalpha():
        raise UsageError(f"`method` must be the name of an HTTP method, got {method!r}")
    return method


def is_url(value: object) -> bool:
    """Whether a caller's argument is text or an object of httpx's or httpx2's URL class."""
    return isinstance(value, str) or (hasattr(value, "scheme") and hasattr(value, "host"))


def check_url(name: str, value: object) -> str:
    """Return a URL as text. Raises UsageError if it is neither text nor an object; its contents are not checked."""
    if not is_url(value):
        raise UsageError(f"`{name}` must be a str or an httpx.URL, got {type(value).__name__}")
    return str(value)


def check_seconds(name: str, value: object, *, zero: bool = False, never: bool = False) -> None:
    """Raise UsageError if `value` is not a finite number of seconds above 0.

    `zero` also allows 0, `never` also None.
    """
    if never and value is None:
        return
    if not is_number(value) or not (0 < value < math.inf or (zero and value == 0)):
        allowed = "a number of seconds, at least 0" if zero else "a number of seconds above 0"
        raise UsageError(f"`{name}` must be {allowed}, got {value!r}{'. Pass None for never.' if never else ''}")


def check_number(name: str, value: object, minimum: float, maximum: float = math.inf) -> None:
    """Raise UsageError if `value` is not a finite number from `minimum` to `maximum`."""
    # Compared with the largest float, since converting a longer int to a float raises OverflowError.
    if not is_number(value) or not minimum <= value <= min(maximum, sys.float_info.max):
        allowed = f"of at least {minimum:g}" if maximum == math.inf else f"from {minimum:g} to {maximum:g}"
        raise UsageError(f"`{name}` must be a number {allowed}, got {value!r}")
