"""Streams of Gemini, Gradio and LangGraph, each with its own dialect: `python -m examples.providers`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx

from sseqbridge import Dialect, ReconnectionPolicy, Timeout, TruncatedStreamError, request_sse

# Nothing marks the end; `finishReason` is in the last chunk.
GEMINI = Dialect(end_data=None)
# /call/...: `event: generating`, `heartbeat`, `complete`, `error`.
GRADIO = Dialect(end_data=None, end_events=("complete",), heartbeat_events=("heartbeat",))
# Gradio's queue: messages without event types. Data is compared exactly, apart from blanks around it.
GRADIO_QUEUE = Dialect(end_data='{"msg":"close_stream"}', heartbeat_data=('{"msg":"heartbeat"}',))
# `event: metadata`, `values`, `messages` ..., `error`, and `end`. Heartbeats are comments.
LANGGRAPH = Dialect(end_data=None, end_events=("end",))
# Home Assistant (/api/stream): `data: ping` between its events.
HOME_ASSISTANT = Dialect(end_data=None, heartbeat_data=("ping",))


def gemini(url: str, key: str, prompt: str) -> Iterator[str]:
    """Yield the text of an answer. `url` is https://generativelanguage.googleapis.com/v1beta."""
    chunks = request_sse(
        f"{url}/models/gemini-2.5-flash:streamGenerateContent",
        {"x-goog-api-key": key},
        {"contents": [{"parts": [{"text": prompt}]}]},
        params={"alt": "sse"},
        dialect=GEMINI,
        timeout=Timeout(read=60, idle=60),
    ).raise_for_status()
    finished = False
    for chunk in chunks.events:
        for candidate in chunk.get("candidates", ()):
            finished = finished or "finishReason" in candidate
            yield "".join(part.get("text", "") for part in candidate.get("content", {}).get("parts", ()))
    if not finished:
        raise TruncatedStreamError("the answer ended without a finishReason")


def gradio(url: str, *arguments: Any) -> Iterator[list[Any]]:
    """Yield the outputs of a Gradio function, from the first to the final ones. `url` ends in /call/NAME."""
    event = httpx.post(url, json={"data": arguments}).raise_for_status().json()["event_id"]
    stream = request_sse(f"{url}/{event}", dialect=GRADIO, timeout=Timeout(read=60, idle=60), require_done=True)
    yield from stream.raise_for_status().events


def langgraph(url: str, thread: str, text: str) -> Iterator[tuple[str, Any]]:
    """Yield the type and data of each event of a run. A lost connection is resumed by a GET."""
    data = {
        "assistant_id": "agent",
        "input": {"messages": [{"role": "user", "content": text}]},
        "stream_mode": ["messages-tuple"],
        "stream_resumable": True,
    }
    stream = request_sse(
        f"{url}/threads/{thread}/runs/stream",
        data=data,
        dialect=LANGGRAPH,
        reconnect=ReconnectionPolicy(resume="get"),
    ).raise_for_status()
    for value in stream.events:
        event = stream.events.last_event
        assert event is not None
        yield event.event, value


def main() -> None:
    """Read one stream of each service. A local server plays all three."""
    from sseqbridge.testing import SSEServer, comment, in_turn, respond, send

    def chunk(text: str, **more: str) -> dict[str, Any]:
        return {"candidates": [{"content": {"parts": [{"text": text}]}, **more}]}

    script = in_turn(
        [send(chunk("Hello ")), send(chunk("from Gemini", finishReason="STOP"))],
        [respond(json={"event_id": "1"})],  # the POST of Gradio, which only returns the address of the stream
        [send(["Hel"], event="generating"), send("null", event="heartbeat"), send(["Hello"], event="complete")],
        [comment("heartbeat"), send([{"content": "Hello"}], event="messages"), send("null", event="end")],
    )
    with SSEServer(script) as upstream:
        print("Gemini:   ", "".join(gemini(upstream.url, "a-key", "Hi")))
        print("Gradio:   ", *gradio(f"{upstream.url}/call/greet", "Hi"))
        for event, value in langgraph(upstream.url, "a-thread", "Hi"):
            print("LangGraph:", event, value)


if __name__ == "__main__":
    main()
