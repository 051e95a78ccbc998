"""Errors of frequent mistakes name what was meant."""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

import sseqbridge
from sseqbridge import SSEClient, SSEError, UsageError, arequest_sse, request_jsonl, request_sse
from sseqbridge._streams import hints
from sseqbridge.testing import SSEServer, send
from tests.requesters import Requester

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
    assert not set(hints._OPTIONS) & (set(known) - {"bridge"})


def test_pair_of_time_limits_is_a_timeout(ask: Requester) -> None:
    with pytest.raises(UsageError, match=r"got builtins\.tuple\. Pass Timeout\(connect=\.\.\., read=\.\.\.\)"):
        ask(ANYWHERE, timeout=(3, 30))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("json", "Read `response.events`"),
        ("close", "Call `response.events.close()`"),
        ("status_code", "Read `response.status`."),
        ("iter_lines", "Iterate over `response.events`."),
    ],
)
def test_attribute_of_other_libraries_names_that_of_this_one(upstream: SSEServer, name: str, hint: str) -> None:
    async def main() -> None:
        async with await arequest_sse(upstream.url) as response:
            with pytest.raises(AttributeError, match=r"^'AsyncSSEResponse' object has no attribute ") as caught:
                getattr(response, name)
            assert hint in str(caught.value)

    asyncio.run(main())
    with request_sse(upstream.url) as response:
        with pytest.raises(AttributeError, match=f"^'SSEResponse' object has no attribute '{name}'. ") as caught:
            getattr(response, name)
        assert hint in str(caught.value)
        assert not hasattr(response, "other")


@pytest.mark.parametrize(
    ("name", "module"),
    [("RedisLog", "resume"), ("SSEServer", "testing"), ("stream_response", "relay.flask, .django or .starlette")],
)
def test_name_of_another_module(name: str, module: str) -> None:
    with pytest.raises(ImportError, match=rf"cannot import name '{name}' .*\. Import it from sseqbridge\.{module}\."):
        exec(f"from sseqbridge import {name}")
    with pytest.raises(ImportError, match="cannot import name 'Nonsense'"):
        exec("from sseqbridge import Nonsense")
    for place in sseqbridge._ELSEWHERE.values():
        importlib.import_module(place.partition(",")[0])


def test_on_reconnect_needs_reconnect(ask: Requester) -> None:
    with pytest.raises(UsageError, match="come with reconnect=True"):
        ask(ANYWHERE, on_reconnect=lambda *_: None)
    assert not issubclass(UsageError, SSEError)
