"""Read one answer in three common ways, and with sseqbridge: `python -m examples.coming_from`.

Each function yields the decoded chunks of an answer. Needs httpx-sse and requests.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import requests
from httpx_sse import connect_sse

from examples.endpoint import text_of
from sseqbridge import merge, request_sse
from sseqbridge.testing import SSEServer, chat_completions, send

Chunks = Iterator[Any]


def with_httpx_sse(url: str, data: Any) -> Chunks:
    with httpx.Client() as client, connect_sse(client, "POST", url, json=data) as source:
        for event in source.iter_sse():
            if event.data == "[DONE]":
                return
            yield event.json()


def with_requests(url: str, data: Any) -> Chunks:
    with requests.post(url, json=data, stream=True, timeout=(3, 30)) as response:
        for line in response.iter_lines():
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                yield json.loads(line[6:])


def with_a_thread(url: str, data: Any) -> Chunks:
    chunks: queue.Queue[Any] = queue.Queue()

    def read() -> None:
        try:
            for chunk in with_requests(url, data):
                chunks.put(chunk)
        finally:
            chunks.put(None)

    threading.Thread(target=read, daemon=True).start()
    yield from iter(chunks.get, None)


def with_request_sse(url: str, data: Any) -> Chunks:
    yield from request_sse(url, data=data, require_done=True).raise_for_status().events


def with_merge(url: str, data: Any) -> Chunks:
    for _, chunk in merge({"answer": lambda: request_sse(url, data=data, require_done=True)}):
        yield chunk


CLIENTS: dict[str, Callable[[str, Any], Chunks]] = {
    "httpx-sse": with_httpx_sse,
    "requests": with_requests,
    "a thread and a queue": with_a_thread,
    "request_sse": with_request_sse,
    "merge": with_merge,
}


def report(read: Callable[[str, Any], Chunks], url: str) -> str:
    """Return the text of an answer, and the error that ended it."""
    text = ""
    try:
        for chunk in read(url, {"messages": [{"role": "user", "content": "Hi"}], "stream": True}):
            text += text_of(chunk)
    except Exception as error:
        return f"{text!r}, then {type(error).__name__}"
    return repr(text)


def main() -> None:
    begin = [send({"choices": [{"delta": {"content": "Hello, "}}]})]
    for title, script in ("An answer:", chat_completions("Hello, world!")), ("An answer without its end:", begin):
        print(title)
        with SSEServer(script) as upstream:
            for name, read in CLIENTS.items():
                print(f"  {name:20} {report(read, upstream.url)}")


if __name__ == "__main__":
    main()
