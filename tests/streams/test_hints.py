"""Errors of frequent mistakes name what was meant."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import sseqbridge
from sseqbridge import (
    Bridge,
    BridgeTransport,
    ReconnectionPolicy,
    SSEClient,
    SSEError,
    Timeout,
    UsageError,
    arequest_sse,
    gather,
    request_jsonl,
    request_sse,
)
from sseqbridge._streams import hints
from sseqbridge.testing import SSEServer, send
from tests.requesters import Requester

pytestmark = pytest.mark.configurations("default")

ANYWHERE = "http://127.0.0.1:9"


@pytest.fixture
def upstream() -> Iterator[SSEServer]:
    with SSEServer([send(1), send("[DONE]")]) as server:
        yield server


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("json_data", "Pass `data`"),
        ("body", "`data` for a JSON body, `content` for bytes"),
        ("stream", 'data={"stream": True, ...}'),
        ("verify", "httpx.AsyncClient(verify=...)"),
        ("proxy", "httpx.AsyncClient(proxy=...)"),
        ("on_message", "with a `for` loop"),
        ("callback", "with a `for` loop"),
        ("chunk_size", "Events arrive whole"),
        ("model", "data={'model': ...}"),
        ("api_key", '"Authorization": "Bearer ..."'),
        ("read_timeout", "timeout=Timeout(read=...)"),
        ("proxies", "httpx.AsyncClient(proxy=...)"),
        ("max_retries", "SSEClient(retries=...)"),
        ("idle", "timeout=Timeout(idle=...)"),
        ("decoder", "Did you mean 'decode'?"),
        ("event_id", "Did you mean 'last_event_id'?"),
    ],
)
def test_unknown_option_names_the_right_one(option: str, hint: str) -> None:
    options: Any = {option: None}
    begin = re.escape(f"() got an unexpected keyword argument {option!r}.")
    for function in (request_sse, request_jsonl, SSEClient, SSEClient().request, SSEClient().call):
        with pytest.raises(TypeError, match=begin) as caught:
            function(ANYWHERE, **options)
        # The others do not have each option of request_sse.
        if "Did you mean" not in hint or function is request_sse:
            assert hint in str(caught.value)
    with pytest.raises(TypeError, match=r"^arequest_sse\(\) got an unexpected keyword argument") as caught:
        asyncio.run(arequest_sse(ANYWHERE, **options))
    assert hint in str(caught.value)


def test_client_and_bridge_are_options_of_one_function_each() -> None:
    options: Any = {"client": None}
    with pytest.raises(TypeError, match=r"Pass bridge=Bridge\(client=\.\.\.\)"):
        request_sse(ANYWHERE, **options)
    options = {"bridge": None}
    with pytest.raises(TypeError, match=r"Pass `client`, an httpx\.AsyncClient"):
        asyncio.run(arequest_sse(ANYWHERE, **options))


def test_unknown_option_without_a_hint() -> None:
    options: Any = {"qqq": 1}
    with pytest.raises(TypeError, match=r"^request_sse\(\) got an unexpected keyword argument 'qqq'\.$"):
        request_sse(ANYWHERE, **options)


def test_other_mistakes_of_a_signature_stay_as_python_reports_them() -> None:
    function: Any = request_sse
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'url'"):
        function()
    with pytest.raises(TypeError, match="takes from 1 to 3 positional arguments"):
        function(ANYWHERE, None, None, None)


def test_hints_are_no_options() -> None:
    """An option of such a name would never get its hint, and one that is hinted at must exist."""
    known = request_sse.__signature__.parameters  # type: ignore[attr-defined]
    assert not set(hints.OPTIONS) & (set(known) - {"bridge"})


def test_pair_of_time_limits_is_a_timeout(ask: Requester) -> None:
    with pytest.raises(UsageError, match=r"got \(3, 30\)\. Pass Timeout\(connect=\.\.\., read=\.\.\.\)"):
        ask(ANYWHERE, timeout=(3, 30))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("json", "Read `response.events`"),
        ("close", "Call `response.events.close()`"),
        ("status_code", "Read `response.status`."),
        ("iter_lines", "Iterate over `response.events`."),
        ("text", 'decode="text"'),
        ("last_event_id", "`response.events.last_event_id`"),
        ("collect", "`response.events.collect`"),
    ],
)
def test_attribute_of_other_libraries_names_that_of_this_one(upstream: SSEServer, name: str, hint: str) -> None:
    async def main() -> None:
        async with await arequest_sse(upstream.url) as response:
            with pytest.raises(AttributeError, match=r"^'AsyncSSEResponse' object has no attribute ") as caught:
                getattr(response, name)
            assert hint.replace(".close()", ".aclose()") in str(caught.value)

    asyncio.run(main())
    with request_sse(upstream.url) as response:
        with pytest.raises(AttributeError, match=f"^'SSEResponse' object has no attribute '{name}'. ") as caught:
            getattr(response, name)
        assert hint in str(caught.value)
        assert not hasattr(response, "other")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("json", "Read `stream`"),
        ("status_code", "Read `stream.status`."),
        ("iter_lines", "Iterate over `stream`."),
        ("read", "Call `stream.collect()`."),
        ("cancel", "Call `stream.close()`."),
    ],
)
def test_attribute_of_a_stream_names_the_right_one(upstream: SSEServer, name: str, hint: str) -> None:
    async def main() -> None:
        async with await arequest_sse(upstream.url) as response:
            with pytest.raises(AttributeError, match=r"^'AsyncEventStream' object has no attribute ") as caught:
                getattr(response.events, name)
            assert hint.replace(".close()", ".aclose()") in str(caught.value)

    asyncio.run(main())
    with request_sse(upstream.url) as response:
        with pytest.raises(AttributeError, match=f"^'EventStream' object has no attribute '{name}'. ") as caught:
            getattr(response.events, name)
        assert hint in str(caught.value)
        assert not hasattr(response.events, "other")


def test_loop_over_a_response_names_the_stream(upstream: SSEServer) -> None:
    async def main() -> None:
        async with await arequest_sse(upstream.url) as response:
            with pytest.raises(TypeError, match=r"Loop over its stream: `async for item in response\.events`\."):
                for _ in response:
                    pass

    asyncio.run(main())
    with request_sse(upstream.url) as response:
        with pytest.raises(TypeError, match=r"is the tuple .* Loop over its stream: `for item in response\.events`\."):
            for _ in response:
                pass
        with pytest.raises(TypeError, match="Loop over its stream"):
            [part for part in response]  # noqa: C416
        # Each of these is a use of the tuple.
        status, headers, events = response
        first, *rest = response
        assert [status, headers, events] == [*response] == list(response) == [first, *rest]
        assert list(zip("she", response, strict=True)) == [("s", status), ("h", headers), ("e", events)]


def test_loops_of_the_other_kind_name_the_class(upstream: SSEServer) -> None:
    """Their text is Python's: a method that raises would make frameworks read the stream wrongly (test_bodies.py)."""

    async def main() -> None:
        response: Any = await arequest_sse(upstream.url)
        async with response:
            with pytest.raises(TypeError, match="'AsyncEventStream' object is not iterable"):
                iter(response.events)

    async def read(stream: Any) -> None:
        async for _ in stream:
            pass

    asyncio.run(main())
    with request_sse(upstream.url) as response, pytest.raises(TypeError, match=r"'async for' .* got EventStream"):
        asyncio.run(read(response.events))


@pytest.mark.blocks_its_loop
def test_request_sse_in_a_coroutine_names_arequest_sse(upstream: SSEServer) -> None:
    async def main() -> None:
        response: Any = request_sse(upstream.url)
        with response:
            async with response:
                pass

    warned = pytest.warns(RuntimeWarning, match="await arequest_sse instead")
    with warned, pytest.raises(TypeError, match="SSEResponse"):
        asyncio.run(main())


@pytest.mark.parametrize("name", ["get", "post", "stream", "close"])
def test_attribute_of_a_client_names_the_right_one(name: str) -> None:
    hint = "nothing to close" if name == "close" else r"Call `client\.request\("
    with pytest.raises(AttributeError, match=rf"^'SSEClient' object has no attribute '{name}'\. .*{hint}"):
        getattr(SSEClient(ANYWHERE), name)
    assert not hasattr(SSEClient(ANYWHERE), "other")


@pytest.mark.parametrize("headers", ["a: b", [("a", "b", "c")], {"a"}, [("a", 1)], {"a": None}])
def test_headers_of_wrong_types(ask: Requester, headers: Any) -> None:
    with pytest.raises(UsageError, match=r"^`headers`(: the value of 'a')? must be .*, got "):
        ask(ANYWHERE, headers)


@pytest.mark.parametrize(
    ("name", "module"),
    [("RedisLog", "resume"), ("SSEServer", "testing"), ("stream_response", "relay.flask, .django or .starlette")],
)
def test_name_of_another_module(name: str, module: str) -> None:
    with pytest.raises(ImportError, match=rf"cannot import name '{name}' .*\. Import it from sseqbridge\.{module}\."):
        exec(f"from sseqbridge import {name}")
    with pytest.raises(ImportError, match="cannot import name 'Nonsense'"):
        exec("from sseqbridge import Nonsense")
    with pytest.raises(ImportError, match="Use request_sse"):
        exec("from sseqbridge import connect_sse")
    for name, place in sseqbridge._ELSEWHERE.items():
        assert hasattr(importlib.import_module(re.split(",| or ", place)[0]), name)


def test_on_reconnect_needs_reconnect(ask: Requester) -> None:
    with pytest.raises(UsageError, match=r"must come with `reconnect`, got it alone\. Pass reconnect=True too\."):
        ask(ANYWHERE, on_reconnect=lambda *_: None)
    not_callable: Any = 1
    with pytest.raises(UsageError, match=r"must be a function of \(attempt, delay, cause\), got int"):
        ask(ANYWHERE, on_reconnect=not_callable, reconnect=True)
    assert not issubclass(UsageError, SSEError)


@pytest.mark.parametrize(
    ("function", "option", "hint"),
    [
        (Timeout, "write", "`read` limits the sending"),
        (Timeout, "timeout", "Timeout(read=30)"),
        (Timeout, "conect", "Did you mean 'connect'?"),
        (ReconnectionPolicy, "max_retries", "Pass `attempts`."),
        (ReconnectionPolicy, "backoff_factor", "Pass `factor`."),
        (ReconnectionPolicy, "maxdelay", "Did you mean 'max_delay'?"),
        (Bridge, "verify", "Pass client=lambda: httpx.AsyncClient(...)"),
        (Bridge, "proxies", "httpx.AsyncClient(proxy=...)"),
        (Bridge, "timeout", "timeout=Timeout(...)"),
        (BridgeTransport, "http2", "Pass bridge=Bridge(client=...)"),
        (BridgeTransport, "retries", "max_retries="),
        (BridgeTransport, "timeout", "Pass it to the client."),
        (partial(gather, []), "concurrency", "Pass `limit`."),
        (partial(gather, []), "return_exceptions", 'errors="yield"'),
        (partial(gather, []), "in_ordr", "Did you mean 'in_order'?"),
    ],
)
def test_unknown_argument_of_other_objects_names_the_right_one(function: Any, option: str, hint: str) -> None:
    name = getattr(function, "func", function).__name__
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument '{option}'\. ") as caught:
        function(**{option: 1})
    assert hint in str(caught.value)


@pytest.mark.parametrize("kind", [Bridge, Timeout, ReconnectionPolicy, BridgeTransport])
def test_positional_argument_of_a_class_without_any_shows_the_form(kind: Any) -> None:
    name = kind.__name__
    with pytest.raises(TypeError, match=rf"^{name}\(\) takes keyword arguments only, .* {name}\(\w+="):
        kind(30)
    assert str(inspect.signature(kind)).startswith("(*, ")


def test_arguments_of_a_class_are_those_of_its_subclass() -> None:
    class Own(BridgeTransport):
        def __init__(self, name: str) -> None:
            super().__init__(idle=1)
            self.name = name

    assert Own("a").name == "a"


def test_next_of_a_response_names_its_stream(upstream: SSEServer) -> None:
    with request_sse(upstream.url) as response:
        made: Any = response
        with pytest.raises(TypeError, match=r"Call next\(response\.events\)\."):
            next(made)
        assert next(response.events) == 1


def test_client_is_no_context_manager() -> None:
    client: Any = SSEClient(ANYWHERE)
    with pytest.raises(TypeError, match=r"'SSEClient' has nothing to close\. Use it without `with`\."), client:
        pass

    async def main() -> None:
        async with client:
            pass

    with pytest.raises(TypeError, match="has nothing to close"):
        asyncio.run(main())


def test_header_without_a_value_asks_for_the_environment(ask: Requester) -> None:
    headers: Any = {"Authorization": None}
    with pytest.raises(UsageError, match=r"got NoneType\. Is a variable of the environment unset\?$"):
        ask(ANYWHERE, headers=headers)
    headers = {"messages": []}
    with pytest.raises(UsageError, match=r"Pass a JSON body as the third argument, `data`\.$"):
        ask(ANYWHERE, headers=headers)


def test_method_in_the_place_of_the_url_is_explained() -> None:
    client: Any = SSEClient(ANYWHERE)
    for send_request in (client.request, client.call):
        with pytest.raises(UsageError, match=r"got str\. The URL is the first argument; .* `method`\.$"):
            send_request("POST", "/x")
