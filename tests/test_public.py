"""The public names, the modules that importing them loads, and their docstrings."""

from __future__ import annotations

import inspect
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import pytest

import sseqbridge
import sseqbridge.testing
from sseqbridge import SSEError, UsageError
from tests.support import python

pytestmark = pytest.mark.configurations("default")

NAMES = [
    "AsyncEventStream",
    "AsyncMergedStreams",
    "AsyncSSEResponse",
    "Attempt",
    "Bridge",
    "BridgeClosedError",
    "BridgeStats",
    "BridgeTransport",
    "BufferLimitError",
    "Call",
    "CallbackError",
    "CancelScope",
    "Cancelled",
    "Comment",
    "ConnectError",
    "ContentTypeError",
    "DecodeError",
    "Dialect",
    "EventError",
    "EventStream",
    "EventStreamParser",
    "EventsLostError",
    "LogAccessError",
    "LogError",
    "LogFullError",
    "LogUnavailableError",
    "MergedStreams",
    "ProducerLostError",
    "ProtocolError",
    "ReadError",
    "ReconnectionError",
    "ReconnectionPolicy",
    "RedirectError",
    "RequestAbortedError",
    "ResponseError",
    "Resume",
    "SSEClient",
    "SSEError",
    "SSEResponse",
    "ServerSentEvent",
    "StatusError",
    "Stream",
    "StreamNotFoundError",
    "StreamStats",
    "StreamTimeoutError",
    "Tee",
    "Timeout",
    "TransportError",
    "TruncatedStreamError",
    "UpstreamError",
    "UsageError",
    "amerge",
    "arequest_sse",
    "cancel_on",
    "enter",
    "gather",
    "iterate",
    "merge",
    "relay",
    "request_jsonl",
    "request_sse",
    "resume",
    "run",
    "tee",
    "testing",
]


def test_public_names_are_complete() -> None:
    assert sorted(sseqbridge.__all__) == sorted(NAMES)


def test_public_names_can_be_imported() -> None:
    for name in NAMES:
        value = getattr(sseqbridge, name)
        assert value.__name__ == (f"sseqbridge.{name}" if inspect.ismodule(value) else name)
        assert vars(sseqbridge)[name] is value, "looked up once"
        assert sseqbridge.__getattr__(name) is value


def test_star_imports_the_public_names() -> None:
    namespace: dict[str, Any] = {}
    exec("from sseqbridge import *", namespace)
    assert {name for name in namespace if name != "__builtins__"} == set(NAMES)


def test_dir_lists_the_public_names() -> None:
    assert set(NAMES) <= set(dir(sseqbridge))
    assert "__all__" in dir(sseqbridge)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'sseqbridge' has no attribute 'request_see'"):
        sseqbridge.request_see  # noqa: B018
    with pytest.raises(ImportError, match="request_see"):
        exec("from sseqbridge import request_see")


def test_every_error_but_usage_error_is_an_sse_error() -> None:
    errors = [getattr(sseqbridge, name) for name in NAMES if name.endswith("Error")]
    assert [error for error in errors if not issubclass(error, SSEError)] == [UsageError]
    assert issubclass(UsageError, RuntimeError)


def modules_after(statement: str) -> set[str]:
    status, out, err = python(f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))")
    assert (status, err) == (0, "")
    return set(json.loads(out))


def test_importing_the_package_is_light() -> None:
    modules = modules_after("import sseqbridge")
    assert modules.isdisjoint({"httpx", "anyio", "asyncio", "ssl", "threading", "sseqbridge._streams.api"})


@pytest.mark.parametrize("name", ["ServerSentEvent", "EventStreamParser", "SSEError", "Dialect"])
def test_modules_without_network_import_no_network(name: str) -> None:
    modules = modules_after(f"from sseqbridge import {name}")
    assert modules.isdisjoint({"httpx", "anyio", "asyncio", "ssl"})


@pytest.mark.slow
def test_functions_import_only_their_dependencies() -> None:
    modules = modules_after("from sseqbridge import request_sse, arequest_sse")
    assert "httpx" in modules
    assert modules.isdisjoint({"sseqbridge.testing", "h2", "trio", "uvloop"})
    # The first call imports them.
    assert modules.isdisjoint({"sseqbridge._http.transport", "sseqbridge._engine.bridge", "sseqbridge._streams.aio"})


def documented() -> Iterator[Any]:
    """Yield every public object, and the public members of classes."""
    yield from (sseqbridge, sseqbridge.testing)
    for module in (sseqbridge, sseqbridge.testing):
        for name in module.__all__:
            value = getattr(module, name)
            if get_origin(value) is not None or not (inspect.isclass(value) or inspect.isfunction(value)):
                continue  # A type alias.
            yield value
            if inspect.isclass(value):
                yield from members(value)


def members(kind: type) -> Iterator[Any]:
    for base in kind.__mro__:
        if base.__module__.startswith("sseqbridge"):
            for name, member in vars(base).items():
                if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                    yield member


def test_public_names_are_documented() -> None:
    assert [value for value in documented() if not is_documented(value)] == []


def is_documented(value: Any) -> bool:
    """Return whether an object has a docstring of at least one sentence."""
    text = inspect.getdoc(value) or ""
    return text.startswith((*string.ascii_uppercase, "`", "200")) and "." in text


def test_package_is_marked_as_typed() -> None:
    assert (Path(sseqbridge.__file__).parent / "py.typed").exists()
