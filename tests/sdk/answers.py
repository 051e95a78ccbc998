"""Streams of providers' APIs, as steps of an SSEServer.

Sources: https://platform.openai.com/docs/api-reference, https://docs.anthropic.com/en/api/messages-streaming,
https://docs.cohere.com/reference/chat-stream
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sseqbridge.testing import Step, send

__all__ = ["chat_steps", "cohere_steps", "message_steps", "response_steps"]

WORDS = ("Hello", ", ", "world")


def chat_steps(words: Iterable[str] = WORDS) -> list[Step]:
    """Return a stream of OpenAI's chat completions."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "test"}

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> Step:
        return send({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    first = chunk({"role": "assistant", "content": ""})
    return [first, *(chunk({"content": word}) for word in words), chunk({}, "stop"), send("[DONE]")]


def message_steps(words: Iterable[str] = WORDS) -> list[Step]:
    """Return a stream of Anthropic's messages."""

    def event(type: str, **fields: Any) -> Step:
        return send({"type": type, **fields}, type)

    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "test",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    return [
        event("message_start", message=message),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("ping"),
        *(event("content_block_delta", index=0, delta={"type": "text_delta", "text": word}) for word in words),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 3}),
        event("message_stop"),
    ]


def cohere_steps(words: Iterable[str] = WORDS) -> list[Step]:
    """Return a stream of Cohere's chat API, version 2."""

    def event(type: str, content: dict[str, Any] | None = None, **fields: Any) -> Step:
        delta = {} if content is None else {"index": 0, "delta": {"message": {"content": content}}}
        return send({"type": type, **delta, **fields}, type)

    return [
        event("message-start", id="1", delta={"message": {"role": "assistant"}}),
        event("content-start", {"type": "text", "text": ""}),
        *(event("content-delta", {"text": word}) for word in words),
        event("content-end", index=0),
        event("message-end", id="1", delta={"finish_reason": "COMPLETE"}),
        send("[DONE]"),
    ]


def response_steps(words: Iterable[str] = WORDS) -> list[Step]:
    """Return a stream of OpenAI's Responses API."""
    words = list(words)
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": _response([], "in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": _item([], "in_progress")},
        {"type": "response.content_part.added", **place, "part": _part("")},
        *({"type": "response.output_text.delta", **place, "delta": word, "logprobs": []} for word in words),
        {"type": "response.output_text.done", **place, "text": "".join(words), "logprobs": []},
        {"type": "response.content_part.done", **place, "part": _part("".join(words))},
        {"type": "response.output_item.done", "output_index": 0, "item": _item(words, "completed")},
        {"type": "response.completed", "response": _response([_item(words, "completed")], "completed")},
    ]
    return [send({**event, "sequence_number": number}, event["type"]) for number, event in enumerate(events)]


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item(words: list[str], status: str) -> dict[str, Any]:
    content = [_part("".join(words))] if words else []
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": content}


def _response(output: list[Any], status: str) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "model": "test",
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
