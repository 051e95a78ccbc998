"""A stream of JSON Lines as a web response: each document is an event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from sseqbridge import SSEClient, relay, request_jsonl, request_sse
from sseqbridge.relay import RelayEnd, flask, starlette
from sseqbridge.testing import SSEServer, cut, respond, silence

LINES = respond(content_type="application/x-ndjson")


def frames(stream: Any, **options: Any) -> bytes:
    return b"".join(relay.frames(stream, heartbeat=None, **options)).removeprefix(b":\n")


def test_each_document_is_an_event() -> None:
    with SSEServer([LINES, b'{"a": 1}\r\n\n"\xe2\x80\xa8"\n3\n']) as server:
        expected = b'data: {"a": 1}\n\ndata: "\xe2\x80\xa8"\n\ndata: 3\n\n'
        assert frames(request_jsonl(server.url)) == expected
        assert frames(request_jsonl(server.url, decode="text")) == expected
        # The browser's half is what request_sse reads.
        server.play([LINES, b'{"a":\r1}\n'])
        assert frames(request_jsonl(server.url)) == b'data: {"a":\ndata: 1}\n\n'


def test_documents_of_several_lines_are_one_event_each() -> None:
    with SSEServer([respond(content_type="application/json-seq"), b'\x1e{\n"a": 1\n}\n\x1e2\n']) as server:
        assert frames(request_jsonl(server.url)) == b'data: {\ndata: "a": 1\ndata: }\n\ndata: 2\n\n'


def test_map_gets_the_items() -> None:
    with SSEServer([LINES, b'{"response":"Hel"}\n{"response":"lo"}\n{"done":true}\n']) as server:
        stream = request_jsonl(server.url, done=lambda event: "done" in event.json())
        assert frames(stream, map=lambda item: item.get("response")) == b"data: Hel\n\ndata: lo\n\n"
        stream = request_jsonl(server.url, decode=lambda event: len(event.data))
        assert frames(stream, map=str).startswith(b"data: 18\n\n")


def test_torn_document_is_reported_to_the_client() -> None:
    with SSEServer([LINES, b'1\n{"torn']) as server:
        sent = frames(request_jsonl(server.url))
    assert sent.startswith(b"data: 1\n\nevent: error\n")
    assert b"TruncatedStreamError" in sent
    # The line may hold what the client must not see.
    assert b"torn" not in sent


@pytest.mark.parametrize(("line", "outcome"), [(b'{"error":"model crashed"}', "error"), (b"no JSON", "eof")])
def test_documents_are_forwarded_as_they_are(line: bytes, outcome: str) -> None:
    ends: list[RelayEnd] = []
    with SSEServer([LINES, b"1\n", line, b"\n"]) as server:
        assert frames(request_jsonl(server.url), on_end=ends.append) == b"data: 1\n\ndata: %b\n\n" % line
    assert [end.outcome for end in ends] == [outcome]


def test_lost_connection_is_reported_to_the_client() -> None:
    with SSEServer([LINES, b'1\n{"secret', cut()]) as server:
        sent = frames(request_jsonl(server.url))
    assert b"the upstream's stream was cut off" in sent or b"the connection to the upstream broke" in sent
    assert b"secret" not in sent


def test_flask_view() -> None:
    app = Flask(__name__)
    with SSEServer([LINES, b'{"a":1}\n']) as server:

        @app.get("/")
        def view() -> Any:
            return flask.stream_response(request_jsonl(server.url))

        response = app.test_client().get("/")
        assert response.content_type == "text/event-stream; charset=utf-8"
        assert response.data.removeprefix(b":\n") == b'data: {"a":1}\n\n'
        server.play([respond(404, content_type="application/json"), b'{"error":"no such model"}'])
        assert app.test_client().get("/").status_code == 502


def test_starlette_view() -> None:
    with SSEServer([LINES, b'{"a":1}\n']) as server:
        client = SSEClient(server.url, format="jsonl")

        async def view(request: Any) -> Any:
            return starlette.stream_response(await client.arequest("/"))

        with TestClient(Starlette(routes=[Route("/", view)])) as browser:
            assert browser.get("/").content.removeprefix(b":\n") == b'data: {"a":1}\n\n'


def test_generator_over_lines() -> None:
    """A view may compute other items of them; a client that leaves aborts the request."""

    async def items(url: str) -> AsyncIterator[str]:
        async with await SSEClient(url, format="jsonl").arequest("/") as response:
            async for item in response.events:
                yield item["response"].upper()

    async def read(url: str) -> bytes:
        sent = relay.aframes(items(url), heartbeat=None)
        first = await anext(sent)
        while b"HEL" not in first:
            first = await anext(sent)
        await sent.aclose()
        return first

    with SSEServer([LINES, b'{"response":"hel"}\n', silence()]) as server:
        assert asyncio.run(read(server.url)) == b"data: HEL\n\n"
        server.requests[0].wait_aborted(30)


def test_relay_can_be_read_as_events() -> None:
    """Over two hops: lines from the upstream, events to the client."""
    with SSEServer([LINES, b'{"a":1}\n{"b":2}\n']) as upstream:
        sent = frames(request_jsonl(upstream.url))
    with SSEServer([sent]) as server:
        assert request_sse(server.url).events.collect() == [{"a": 1}, {"b": 2}]
