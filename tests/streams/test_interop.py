"""Third-party servers and clients: sse-starlette and FastAPI under uvicorn, and openai."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Any

import openai
import pytest
import sse_starlette
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from sse_starlette import EventSourceResponse

from sseqbridge import (
    Comment,
    DecodeError,
    ServerSentEvent,
    StatusError,
    StreamTimeoutError,
    Timeout,
    arequest_sse,
    request_sse,
)
from sseqbridge.testing import SSEServer, chat_completions
from tests.clock import FakeClock
from tests.support import in_thread, until

# Importing openai and other clients takes a second.
pytestmark = pytest.mark.slow

TEXT = "Hello, world:  two spaces, äöü € 🙂, \t tab,\nnew lines\n\nand quotes\"'.\n "

# Payloads in use, and their items with decode="json".
JSON = [
    (1, 1),
    (-2.5, -2.5),
    ("7", 7),
    (json.dumps({"a": {"b": [1, None, True]}}), {"a": {"b": [1, None, True]}}),
    ('{"text": "line\u2028separator\\nnew line"}', {"text": "line\u2028separator\nnew line"}),
    (json.dumps({"pretty": [1, 2]}, indent=2), {"pretty": [1, 2]}),
    ("null", None),
    ('""', ""),
]

app = FastAPI()

# Shared by applications and tests: the disconnects that each route has seen, and flags to continue.
left: dict[str, threading.Event] = {}
flags: dict[str, threading.Event] = {}


async def is_set(flag: threading.Event) -> None:
    while not flag.is_set():
        await asyncio.sleep(0.005)


def seen(name: str) -> threading.Event:
    return left.setdefault(name, threading.Event())


@app.get("/characters")
async def characters(sep: str | None = None) -> EventSourceResponse:
    async def body() -> AsyncIterator[str]:
        for character in TEXT:
            yield character

    return EventSourceResponse(body(), sep=sep)


@app.get("/json")
async def json_values(sep: str | None = None) -> EventSourceResponse:
    async def body() -> AsyncIterator[Any]:
        for sent, _ in JSON:
            yield sent
        yield "[DONE]"

    return EventSourceResponse(body(), sep=sep)


@app.get("/events")
async def events(sep: str | None = None) -> EventSourceResponse:
    async def body() -> AsyncIterator[dict[str, Any]]:
        yield {"event": "update", "id": "1", "retry": 1500, "data": "a\nb"}
        yield {"comment": "between"}
        yield {"event": "end", "data": ""}

    return EventSourceResponse(body(), sep=sep)


@app.post("/echo")
async def echo(request: Request) -> EventSourceResponse:
    async def body() -> AsyncIterator[str]:
        yield json.dumps(await request.json())
        yield "[DONE]"

    return EventSourceResponse(body())


@app.get("/pinged")
async def pinged(name: str) -> EventSourceResponse:
    def ping() -> sse_starlette.ServerSentEvent:
        flags[f"{name} pinged"].set()
        return sse_starlette.ServerSentEvent(comment="ping")

    async def body() -> AsyncIterator[str]:
        yield "1"
        await is_set(flags[f"{name} goes on"])
        yield "2"

    return EventSourceResponse(body(), ping=1, ping_message_factory=ping)


@app.get("/endless")
async def endless(name: str, silent: bool, ping: float = 15) -> EventSourceResponse:
    async def body() -> AsyncIterator[str]:
        try:
            yield "1"
            while True:
                await asyncio.sleep(3600 if silent else 0.001)
                yield "2"
        finally:
            seen(name).set()

    return EventSourceResponse(body(), ping=ping)


@app.get("/plain/{kind}")
async def plain(kind: str) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        if kind == "characters":
            for character in "two  spaces, äöü 🙂":
                yield f"data: {character}\n\n"
        elif kind == "numbers":
            for number in (1, 2.5, -3):
                yield f"data: {number}\n\n"
        elif kind == "json":
            yield f"data: {json.dumps({'a': 1})}\n\ndata:{json.dumps({'no': 'space'})}\n\n"
        elif kind == "crlf":
            yield "event: x\r\nid: 1\r\ndata: 1\r\n\r\ndata: 2\r\n\r\n"
        elif kind == "torn":
            for piece in "data: 1\n\ndata: [DONE]\n\n":
                yield piece
                await asyncio.sleep(0)

    return StreamingResponse(body(), media_type="text/event-stream")


@app.post("/plain/echo")
async def plain_echo(payload: dict[str, Any]) -> StreamingResponse:
    def body() -> Iterator[str]:
        yield f"data: {json.dumps(payload)}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@app.get("/plain/endless/{name}")
async def plain_endless(name: str, request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        try:
            yield "data: 1\n\n"
            while not await request.is_disconnected():
                await asyncio.sleep(0.005)
        finally:
            seen(name).set()

    return StreamingResponse(body(), media_type="text/event-stream")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The origin of the application above, under uvicorn in a thread."""
    config = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listening: Future[None] = Future()
    started: Callable[..., Awaitable[None]] = server.startup

    async def startup(sockets: list[socket.socket] | None = None) -> None:
        await started(sockets)
        listening.set_result(None)

    server.startup = startup  # type: ignore[method-assign]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = in_thread(lambda: server.run(sockets=[listener]), "uvicorn")
        listening.result(30)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        served.result(30)


SEPARATORS = ["\n", "\r\n", "\r"]


@pytest.mark.parametrize("sep", SEPARATORS)
def test_text_a_character_at_a_time(url: str, sep: str) -> None:
    _, _, items = request_sse(f"{url}/characters", params={"sep": sep}, decode="text")
    characters = list(items)
    assert "".join(characters) == TEXT
    assert len(characters) == len(TEXT)
    assert items.outcome == "eof"


@pytest.mark.parametrize("sep", SEPARATORS)
def test_numbers_and_objects(url: str, sep: str) -> None:
    _, _, items = request_sse(f"{url}/json", params={"sep": sep})
    assert list(items) == [expected for _, expected in JSON]
    assert items.outcome == "done"


def test_text_that_is_not_json_raises_decode_error(url: str) -> None:
    _, _, items = request_sse(f"{url}/characters")
    with pytest.raises(DecodeError, match='decode="text"') as caught:
        next(items)
    assert caught.value.event.data == "H"


@pytest.mark.parametrize("sep", SEPARATORS)
@pytest.mark.parametrize("comments", [True, False])
def test_event_id_and_retry_fields(url: str, sep: str, comments: bool) -> None:
    _, _, items = request_sse(f"{url}/events", params={"sep": sep}, decode="event", comments=comments)
    expected: list[ServerSentEvent | Comment] = [
        ServerSentEvent("update", "a\nb", "1", 1.5),
        Comment("between"),
        ServerSentEvent("end", "", "1"),
    ]
    assert list(items) == [item for item in expected if comments or not isinstance(item, Comment)]
    assert (items.retry, items.last_event_id) == (1.5, "1")


def test_a_posted_body_comes_back(url: str) -> None:
    payload = {"messages": [{"role": "user", "content": "äöü \u2028 🙂"}], "stream": True}
    for path in ("/echo", "/plain/echo"):
        status, headers, items = request_sse(f"{url}{path}", {"X-Mine": "1"}, payload)
        assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
        assert list(items) == [payload]


@pytest.mark.slow
def test_pings_do_not_disturb(url: str) -> None:
    flags["unseen pinged"] = flags["unseen goes on"] = threading.Event()
    _, _, items = request_sse(f"{url}/pinged", params={"name": "unseen"})
    assert list(items) == [1, 2]


def test_pings_do_not_reset_the_idle_timeout(url: str, clock: FakeClock) -> None:
    limits = Timeout(read=None, idle=60)
    _, _, items = request_sse(f"{url}/endless?name=idle&silent=true&ping=0.02", timeout=limits)
    assert next(items) == 1
    until(lambda: items.stats.bytes > 200)  # Pings come.
    with pytest.raises(StreamTimeoutError, match="no event"):
        clock.advance_until_done(lambda: next(items), step=10)
    assert seen("idle").wait(30)


@pytest.mark.slow
def test_pings_are_delivered_as_comments(url: str) -> None:
    flags["shown pinged"], flags["shown goes on"] = threading.Event(), threading.Event()
    _, _, items = request_sse(f"{url}/pinged", params={"name": "shown"}, decode="event", comments=True)
    assert [next(items), next(items)] == [ServerSentEvent(data="1"), Comment("ping")]
    flags["shown goes on"].set()
    assert [item for item in items if item != Comment("ping")] == [ServerSentEvent(data="2")]


@pytest.mark.parametrize("silent", [True, False])
def test_sse_starlette_notices_the_break(url: str, silent: bool) -> None:
    name = f"break, silent={silent}"
    _, _, items = request_sse(f"{url}/endless", params={"name": name, "silent": silent})
    for _ in items:
        break
    assert seen(name).wait(30)


def test_sse_starlette_notices_an_async_reader_leave(url: str) -> None:
    async def main() -> None:
        async with await arequest_sse(f"{url}/endless?name=async&silent=true") as (_, _, items):
            assert await items.next() == 1

    asyncio.run(main())
    assert seen("async").wait(30)


def test_fastapi_notices_the_break(url: str) -> None:
    for item in request_sse(f"{url}/plain/endless/plain").events:
        assert item == 1
        break
    assert seen("plain").wait(30)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("characters", {"decode": "text"}, list("two  spaces, äöü 🙂")),
        ("numbers", {}, [1, 2.5, -3]),
        ("json", {}, [{"a": 1}, {"no": "space"}]),
        ("crlf", {"decode": "event"}, [ServerSentEvent("x", "1", "1"), ServerSentEvent("message", "2", "1")]),
        ("torn", {}, [1]),
    ],
)
def test_fastapi_streams_are_read(url: str, kind: str, options: dict[str, Any], expected: list[Any]) -> None:
    assert list(request_sse(f"{url}/plain/{kind}", **options).events) == expected


def test_fastapis_errors(url: str) -> None:
    status, _, items = request_sse(f"{url}/nowhere")
    assert (status, list(items)) == (404, [{"detail": "Not Found"}])
    with pytest.raises(StatusError) as caught:
        request_sse(f"{url}/plain/echo", None, [1]).raise_for_status()
    assert caught.value.status == 422
    assert json.loads(caught.value.body)["detail"]


def test_openai_and_request_sse_read_the_same(url: str) -> None:
    """The official client reads the same chunks from the quickstart's upstream."""
    call: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "say it"}]}
    with (
        SSEServer(chat_completions("Two words.")) as server,
        openai.OpenAI(api_key="key", base_url=f"{server.url}/v1", max_retries=0) as client,
    ):
        endpoint = f"{server.url}/v1/chat/completions"
        _, _, chunks = request_sse(endpoint, {"Authorization": "Bearer key"}, {**call, "stream": True})
        ours = [chunk["choices"][0] for chunk in chunks]
        with client.chat.completions.create(**call, stream=True) as stream:
            theirs = [chunk.choices[0].to_dict() for chunk in stream]
        assert ours == theirs
        assert "".join(choice["delta"].get("content", "") for choice in ours) == "Two words."
        whole = client.chat.completions.create(**call)
        assert whole.choices[0].message.content == "Two words."
        first, second, third = server.requests
        assert first.headers["authorization"] == second.headers["authorization"] == "Bearer key"
        assert first.json() == second.json() == {**third.json(), "stream": True}
