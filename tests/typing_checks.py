"""Static types of request_sse and arequest_sse for each form of `decode`. mypy checks this module; nothing runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import httpx
from typing_extensions import assert_type

from sseqbridge import (
    AsyncEventStream,
    AsyncMergedStreams,
    AsyncSSEResponse,
    Attempt,
    Bridge,
    Call,
    Comment,
    Dialect,
    EventStream,
    MergedStreams,
    ReconnectionPolicy,
    Resume,
    ServerSentEvent,
    SSEClient,
    SSEResponse,
    Stream,
    Timeout,
    amerge,
    arequest_sse,
    enter,
    gather,
    iterate,
    merge,
    request_jsonl,
    request_sse,
    run,
    tee,
)

__all__ = [
    "check_amerge",
    "check_arequest_sse",
    "check_async_code",
    "check_client",
    "check_merge",
    "check_request_jsonl",
    "check_request_sse",
    "check_resume",
]


def size(event: ServerSentEvent) -> int:
    return len(event.data)


if TYPE_CHECKING:
    # Not in a function, where mypy lets `_` have any type.
    _, _, texts = request_sse("http://h", decode="text")
    _, _, events = request_sse("http://h", decode="event")
    _, _, sizes = SSEClient("http://h", decode=size).request("/")
    assert_type(texts, EventStream[str])
    assert_type(events, EventStream[ServerSentEvent])
    assert_type(sizes, EventStream[int])


def check_request_sse(url: str, flag: bool, decode: str, literal: Literal["text", "json"]) -> None:
    assert_type(request_sse(url, decode=decode), SSEResponse[Any])
    assert_type(request_sse(url, decode=decode, comments=flag), SSEResponse[Any])
    assert_type(request_sse(url, decode=literal), SSEResponse[Any])
    assert_type(request_sse(url), SSEResponse[Any])
    assert_type(request_sse(url, decode="json"), SSEResponse[Any])
    assert_type(request_sse(url, decode="text"), SSEResponse[str])
    assert_type(request_sse(url, decode="event"), SSEResponse[ServerSentEvent])
    assert_type(request_sse(url, decode="event", comments=False), SSEResponse[ServerSentEvent])
    assert_type(request_sse(url, decode="event", comments=True), SSEResponse[ServerSentEvent | Comment])
    assert_type(request_sse(url, decode="event", comments=flag), SSEResponse[ServerSentEvent | Comment])
    assert_type(request_sse(url, decode=size), SSEResponse[int])
    assert_type(request_sse(url, decode=lambda event: event.retry), SSEResponse[float | None])

    response = request_sse(httpx.URL(url), [("X-A", "1")], {"a": 1}, decode="text", timeout=Timeout(), bridge=Bridge())
    status, headers, events = response.raise_for_status()
    assert_type(status, int)
    assert_type(response.headers, httpx.Headers)
    unpacked: httpx.Headers = headers
    assert_type(unpacked.get_list("X-A"), list[str])
    assert_type(events, EventStream[str])
    assert_type(response.events, EventStream[str])
    assert_type(events.raise_for_status(), EventStream[str])
    assert_type(next(events), str)
    assert_type(events.next(timeout=1), str)
    assert_type(iter(events), Iterator[str])
    assert_type(events.keep_open(), Iterator[str])
    assert_type(events.last_event, ServerSentEvent | None)
    assert_type(events.outcome, Literal["done", "eof", "closed", "error"] | None)
    with response as entered, events as same:
        assert_type(entered, SSEResponse[str])
        assert_type(same, EventStream[str])
    request_sse(url, dialect="anthropic")
    request_sse(url, dialect=Dialect(end_data=None, end_events=["end"], heartbeat_events={"ping"}))
    request_sse(url, dialect="other")  # type: ignore[call-overload]
    request_sse(url, methd="GET")  # type: ignore[call-overload]
    request_sse(url, timeout={"idle": 3, "total": None})
    request_sse(url, timeout={"idel": 3})  # type: ignore[call-overload]
    request_sse(url, client=httpx.AsyncClient())  # type: ignore[call-overload]


def check_request_jsonl(url: str, decode: str) -> None:
    assert_type(request_jsonl(url), SSEResponse[Any])
    assert_type(request_jsonl(url, decode="json"), SSEResponse[Any])
    assert_type(request_jsonl(url, decode=decode), SSEResponse[Any])
    assert_type(request_jsonl(url, decode="text"), SSEResponse[str])
    assert_type(request_jsonl(url, {"X-A": "1"}, {"a": 1}, decode="event", done=None), SSEResponse[ServerSentEvent])
    assert_type(request_jsonl(url, decode=size, bridge=Bridge()), SSEResponse[int])
    assert_type(request_jsonl(url, decode=lambda event: event.data), SSEResponse[str])
    request_jsonl(url, comments=True)  # type: ignore[call-overload]
    request_jsonl(url, reconnect=True)  # type: ignore[call-overload]
    request_jsonl(url, dialect="openai")  # type: ignore[call-overload]
    assert_type(SSEClient(url, format="jsonl", decode="text"), SSEClient[str])
    SSEClient(url, format="xml")  # type: ignore[call-overload]


def check_resume() -> None:
    def resume(attempt: Attempt) -> Resume | None:
        return Resume("GET", attempt.response_headers["location"], attempt.headers)

    ReconnectionPolicy(resume=resume)
    ReconnectionPolicy(resume="get")
    ReconnectionPolicy(resume="post")  # type: ignore[arg-type]


async def check_arequest_sse(url: str, flag: bool, decode: str) -> None:
    assert_type(await arequest_sse(url, decode=decode), AsyncSSEResponse[Any])
    assert_type(await arequest_sse(url), AsyncSSEResponse[Any])
    assert_type(await arequest_sse(url, decode="json"), AsyncSSEResponse[Any])
    assert_type(await arequest_sse(url, decode="text"), AsyncSSEResponse[str])
    assert_type(await arequest_sse(url, decode="event"), AsyncSSEResponse[ServerSentEvent])
    assert_type(await arequest_sse(url, decode="event", comments=False), AsyncSSEResponse[ServerSentEvent])
    assert_type(await arequest_sse(url, decode="event", comments=True), AsyncSSEResponse[ServerSentEvent | Comment])
    assert_type(await arequest_sse(url, decode="event", comments=flag), AsyncSSEResponse[ServerSentEvent | Comment])
    assert_type(await arequest_sse(url, decode=size), AsyncSSEResponse[int])
    assert_type(await arequest_sse(url, decode=lambda event: event.retry), AsyncSSEResponse[float | None])

    response = await arequest_sse(url, {"X-A": "1"}, {"a": 1}, decode="text", timeout=5, client=httpx.AsyncClient())
    status, headers, events = await response.raise_for_status()
    assert_type(status, int)
    assert_type(response.headers, httpx.Headers)
    unpacked: httpx.Headers = headers
    assert_type(unpacked.get_list("X-A"), list[str])
    assert_type(events, AsyncEventStream[str])
    assert_type(response.events, AsyncEventStream[str])
    assert_type(await events.raise_for_status(), AsyncEventStream[str])
    assert_type(await anext(events), str)
    assert_type(await events.next(timeout=1), str)
    assert_type(aiter(events), AsyncEventStream[str])
    assert_type([item async for item in events], list[str])
    iter(events)  # type: ignore[call-overload]
    [item async for item in request_sse(url).events]  # type: ignore[attr-defined]
    any_iterator: AsyncIterator[str] = events
    assert_type(await anext(any_iterator), str)
    async with response as entered, events as same:
        assert_type(entered, AsyncSSEResponse[str])
        assert_type(same, AsyncEventStream[str])
    await arequest_sse(url, timeout={"idel": 3})  # type: ignore[call-overload]
    await arequest_sse(url, bridge=Bridge())  # type: ignore[call-overload]


async def check_client(url: str, flag: bool, decode: str) -> None:
    assert_type(SSEClient(url, decode=decode), SSEClient[Any])
    assert_type(SSEClient(url, timeout={"idle": 3}).with_options(decode=decode, comments=flag), SSEClient[Any])
    SSEClient(url, timeout={"idel": 3})  # type: ignore[call-overload]
    assert_type(SSEClient(), SSEClient[Any])
    assert_type(SSEClient(url, decode="json"), SSEClient[Any])
    assert_type(SSEClient(httpx.URL(url), decode="text", headers=[("X-A", "1")]), SSEClient[str])
    assert_type(SSEClient(url, decode="event", headers=lambda: {"X-A": "1"}), SSEClient[ServerSentEvent])
    assert_type(SSEClient(url, decode="event", comments=False), SSEClient[ServerSentEvent])
    assert_type(SSEClient(url, decode="event", comments=flag), SSEClient[ServerSentEvent | Comment])
    assert_type(SSEClient(url, decode=size), SSEClient[int])
    assert_type(SSEClient(url, decode=lambda event: event.retry), SSEClient[float | None])
    assert_type(SSEClient(url, decode="event", comments=True).call("/"), Call[ServerSentEvent | Comment])
    client = SSEClient(url, decode="text", timeout=Timeout(), bridge=Bridge())
    assert_type(client.request("/", {"X-A": "1"}, {"a": 1}, timeout=5), SSEResponse[str])
    assert_type(await client.arequest("/", client=httpx.AsyncClient()), AsyncSSEResponse[str])
    assert_type(client.call(httpx.URL(url), json={}), Call[str])
    assert_type(client.call("/")(), SSEResponse[str])
    assert_type(await client.call("/").asend(), AsyncSSEResponse[str])
    assert_type(client.with_options(timeout=5), SSEClient[str])
    assert_type(client.with_options(base_url=url), SSEClient[str])
    assert_type(client.with_options(decode="event", comments=flag, base_url=url), SSEClient[Any])
    assert_type(client.with_options(decode=lambda event: event.retry), SSEClient[Any])
    sizes: SSEClient[int] = client.with_options(decode=size)
    assert_type(sizes.request("/"), SSEResponse[int])
    client.with_options(decode=5)  # type: ignore[call-overload]
    client.with_options(comments=flag)  # type: ignore[call-overload]
    client.with_options(timeout={"idel": 3})  # type: ignore[call-overload]
    client.request("/", timeout={"idel": 3})  # type: ignore[arg-type]
    client.call("/", decode="text")  # type: ignore[call-arg]
    SSEClient(url, params={})  # type: ignore[call-overload]
    client.request("/", decode="json")  # type: ignore[call-arg]
    client.request("/", client=httpx.AsyncClient())  # type: ignore[call-arg]


def check_merge(url: str, client: SSEClient[str], either: Literal["raise", "yield"]) -> None:
    call = client.call("/")
    assert_type(merge([call, call]), MergedStreams[int, str])
    assert_type(merge({"a": call}), MergedStreams[str, str])
    assert_type(merge({1: request_sse(url, decode=size)}), MergedStreams[int, int])
    assert_type(merge([iterate(numbers())]), MergedStreams[int, int])
    assert_type(merge(client.request(url).events for _ in range(3)), MergedStreams[int, str])
    assert_type(merge([lambda: client.request("/")]), MergedStreams[int, str])
    assert_type(merge({"a": call}, errors="yield"), MergedStreams[str, str | Exception])
    assert_type(merge([call], errors="yield"), MergedStreams[int, str | Exception])
    assert_type([(name, item) for name, item in merge({"a": call})], list[tuple[str, str]])
    # No common type of items.
    assert_type(merge([call, iterate(numbers())]), MergedStreams[Any, Any])
    assert_type(merge({"a": partial(request_sse, url)}), MergedStreams[str, Any])
    assert_type(merge({"a": call, "b": iterate(numbers())}), MergedStreams[str, Any])
    assert_type(gather({"a": partial(request_sse, url)}), Iterator[tuple[str, list[Any]]])
    assert_type(merge(), MergedStreams[Any, Any])
    assert_type(gather([call]), Iterator[tuple[int, list[str]]])
    assert_type(gather({"a": call}, limit=2), Iterator[tuple[str, list[str]]])
    assert_type(gather({"a": call}, errors="yield"), Iterator[tuple[str, list[str] | Exception]])
    assert_type(gather([call], errors="yield"), Iterator[tuple[int, list[str] | Exception]])
    assert_type(gather([call, lambda: iterate(numbers())]), Iterator[tuple[int, list[Any]]])
    merge([call], errors=either)
    gather({"a": call}, errors=either)
    assert_type(tee(call)[0], EventStream[str])
    assert_type(tee(lambda: iterate(numbers()))[0], Stream[int])


async def check_amerge(url: str, client: SSEClient[str]) -> None:
    async def opened() -> AsyncSSEResponse[str]:
        return await client.arequest("/")

    assert_type(amerge([client.call("/")]), AsyncMergedStreams[int, str])
    assert_type(amerge({"a": await client.arequest("/")}), AsyncMergedStreams[str, str])
    assert_type(amerge([(await client.arequest("/")).events]), AsyncMergedStreams[int, str])
    assert_type(amerge({"a": opened}, errors="yield"), AsyncMergedStreams[str, str | Exception])
    assert_type([named async for named in amerge([opened])], list[tuple[int, str]])
    assert_type(amerge({"a": partial(arequest_sse, url)}), AsyncMergedStreams[str, Any])


async def numbers() -> AsyncIterator[int]:
    yield 1


async def number() -> int:
    return 1


async def opened() -> AsyncIterator[int]:
    return numbers()


@asynccontextmanager
async def session() -> AsyncIterator[str]:
    yield "open"


def check_async_code(bridge: Bridge, url: str) -> None:
    assert_type(iterate(numbers()), Stream[int])
    assert_type(iterate(numbers), Stream[int])
    assert_type(iterate(opened), Stream[int])
    assert_type(iterate(opened, cancel=None, max_buffered=1), Stream[int])
    assert_type(bridge.iterate(numbers()), Stream[int])
    assert_type(next(iterate(numbers())), int)
    assert_type(list(iterate(numbers())), list[int])
    assert_type(run(number()), int)
    assert_type(run(number, timeout=1), int)
    assert_type(run(partial(len, "x")), int)
    assert_type(bridge.run(number()), int)
    with enter(session()) as entered, enter(session) as made, bridge.enter(session) as on_bridge:
        assert_type(entered, str)
        assert_type(made, str)
        assert_type(on_bridge, str)
    assert_type(tee(iterate(numbers()))[0], Stream[int])
    assert_type(tee(request_sse(url, decode="text"))[0], EventStream[str])
    iterate([1])  # type: ignore[call-overload]
    run(1)  # type: ignore[call-overload]
    enter(1)  # type: ignore[call-overload]
