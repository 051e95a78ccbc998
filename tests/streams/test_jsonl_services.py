"""Services that answer with JSON Lines: Ollama, FastAPI, Kubernetes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest
import uvicorn

from sseqbridge import SSEClient, StatusError, TruncatedStreamError, UpstreamError, request_jsonl
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, respond, silence
from tests.support import in_thread, until

# Ollama. Source: https://github.com/ollama/ollama/blob/main/docs/api.md


def line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def ollama(request: ReceivedRequest) -> Iterable[Step]:
    body = request.json()
    if body["model"] == "missing":
        yield respond(404, content_type="application/json; charset=utf-8")
        yield b'{"error":"model \'missing\' not found"}'
        return
    yield respond(content_type="application/x-ndjson")
    for word in ("The", " sky", " is"):
        yield line({"model": body["model"], "message": {"role": "assistant", "content": word}, "done": False})
    if body["model"] == "crashing":
        yield line({"error": "an error was encountered while running the model: CUDA error"})
        return
    if body["model"] != "cut":
        yield line({"model": body["model"], "message": {"content": ""}, "done": True, "done_reason": "stop"})


def is_done(event: Any) -> bool:
    return bool(event.json().get("done"))


@pytest.fixture
def chat() -> Iterator[Any]:
    with SSEServer(ollama) as server:
        client = SSEClient(server.url, format="jsonl", done=is_done, require_done=True)
        yield lambda model: client.request("/api/chat", data={"model": model, "messages": []})


def test_answer_of_ollama(chat: Any) -> None:
    status, headers, it = chat("llama3.2")
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    chunks = list(it)
    assert "".join(chunk["message"]["content"] for chunk in chunks) == "The sky is"
    assert chunks[-1]["done_reason"] == "stop"
    assert it.outcome == "done"


def test_error_of_ollama_in_mid_stream(chat: Any) -> None:
    it = chat("crashing").events
    assert [next(it)["message"]["content"] for _ in range(3)] == ["The", " sky", " is"]
    with pytest.raises(UpstreamError, match="CUDA error"):
        next(it)


@pytest.mark.slow
def test_refusal_of_ollama(chat: Any) -> None:
    with pytest.raises(StatusError, match="model 'missing' not found"):
        chat("missing").raise_for_status()


def test_answer_of_ollama_that_a_proxy_ends_early(chat: Any) -> None:
    it = chat("cut").events
    with pytest.raises(TruncatedStreamError):
        it.collect()


# FastAPI, which streams application/jsonl for an annotation AsyncIterable.


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = in_thread(lambda: server.run(sockets=[listener]), "uvicorn")
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        serving.result(30)


@pytest.mark.slow
@pytest.mark.blocks_its_loop
def test_endpoint_of_fastapi() -> None:
    from fastapi import FastAPI

    app = FastAPI()
    has_left = threading.Event()

    @app.get("/items")
    async def items(count: int) -> AsyncIterator[dict[str, Any]]:
        for n in range(count):
            yield {"n": n, "text": "\u2028\u00e4\n"}

    @app.get("/endless")
    async def endless() -> AsyncIterator[dict[str, Any]]:
        try:
            yield {"n": 0}
            await asyncio.sleep(1000)
        finally:
            has_left.set()

    with served(app) as url:
        status, headers, it = request_jsonl(f"{url}/items", params={"count": 3})
        assert (status, headers["content-type"].partition(";")[0]) == (200, "application/jsonl")
        assert list(it) == [{"n": n, "text": "\u2028\u00e4\n"} for n in range(3)]
        for item in request_jsonl(f"{url}/endless").events:
            assert item == {"n": 0}
            break
        assert has_left.wait(30)
        refused = request_jsonl(f"{url}/items")
        assert (refused.status, next(refused.events)["detail"][0]["loc"]) == (422, ["query", "count"])


# Kubernetes. Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes


def watched(kind: str, version: int) -> bytes:
    return line({"type": kind, "object": {"kind": "Pod", "metadata": {"name": "a", "resourceVersion": str(version)}}})


def kubernetes(request: ReceivedRequest) -> Iterable[Step]:
    """The lines are application/json, without a mark of the format; a chunk may end anywhere."""
    if "authorization" not in request.headers:
        yield respond(401, content_type="application/json")
        yield line({"kind": "Status", "status": "Failure", "message": "Unauthorized", "code": 401})
        return
    assert "application/json" in request.headers["accept"]
    yield respond(content_type="application/json")
    if "resourceVersion=12" in request.path:
        gone = {"kind": "Status", "message": "too old resource version", "reason": "Expired", "code": 410}
        yield line({"type": "ERROR", "object": gone})
        return
    events = watched("ADDED", 10) + watched("MODIFIED", 11) + watched("BOOKMARK", 12)
    yield events[:50]
    yield events[50:]


HEADERS = {"Authorization": "Bearer token"}


def test_watch_of_kubernetes() -> None:
    with SSEServer(kubernetes) as server:
        url = f"{server.url}/api/v1/pods"
        seen: list[str] = []
        version = "0"
        # The server ends a watch after some minutes, and the client asks for the changes after the last one.
        while True:
            status, _, it = request_jsonl(url, HEADERS, params={"watch": "1", "resourceVersion": version})
            assert status == 200
            for event in it:
                seen.append(event["type"])
                version = event["object"].get("metadata", {}).get("resourceVersion", "")
            assert it.outcome == "eof"
            if not version:
                break
        assert seen == ["ADDED", "MODIFIED", "BOOKMARK", "ERROR"]
        assert event["object"]["code"] == 410
        with pytest.raises(StatusError, match="Unauthorized"):
            request_jsonl(url).raise_for_status()


def test_silent_watch_of_kubernetes_can_be_left() -> None:
    flag = threading.Event()
    head = respond(content_type="application/json")
    with SSEServer([head, watched("ADDED", 1), hold(flag), watched("DELETED", 2), silence()]) as server:
        it = request_jsonl(server.url, HEADERS).events
        assert it.next(30)["type"] == "ADDED"
        reading = in_thread(lambda: list(it))
        flag.set()
        until(lambda: it.stats.events == 2)
        it.close()
        server.requests[0].wait_aborted(30)
        assert [event["type"] for event in reading.result(30)] in ([], ["DELETED"])
