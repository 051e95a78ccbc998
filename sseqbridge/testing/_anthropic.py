"""A script that answers like Anthropic's Messages API.

Pure functions of the request, which the server calls on its loop thread.
Source: https://docs.claude.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from ._answers import Answer, builder
from ._steps import Step, send

__all__ = ["anthropic_messages"]


def _has_result(message: Any) -> bool:
    content = message.get("content") if isinstance(message, dict) else None
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "tool_result" for part in content
    )


@builder(
    read=lambda body: body["messages"] if isinstance(body.get("messages"), list) else None,
    has_results=lambda messages: any(map(_has_result, messages)),
    refusal={
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "POST a JSON object with a list of messages"},
    },
)
def anthropic_messages(answer: Answer) -> Iterator[Step]:
    """Return a script that answers like Anthropic's Messages API, streamed if the request has `"stream": true`.

        SSEServer(anthropic_messages("It is sunny."))

    Source: https://docs.claude.com/en/docs/build-with-claude/streaming
    """
    usage = {"input_tokens": 0, "output_tokens": len(answer.tokens)}
    blocks = [_call(*call) for call in answer.tool_calls] or [{"type": "text", "text": answer.text}]
    whole = {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": blocks,
        "stop_reason": "tool_use" if answer.tool_calls else "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }
    return _events(answer, whole) if answer.is_streamed else answer.whole(whole)


def _call(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": name, "input": arguments}


def _events(answer: Answer, whole: dict[str, Any]) -> Iterator[Step]:
    begun = {**whole, "content": [], "stop_reason": None, "usage": {"input_tokens": 0, "output_tokens": 0}}
    yield _event("message_start", message=begun)
    for index, block in enumerate(whole["content"]):
        is_text = block["type"] == "text"
        empty = {**block, "text": ""} if is_text else {**block, "input": {}}
        yield _event("content_block_start", index=index, content_block=empty)
        yield _event("ping")
        deltas: list[dict[str, Any]] = [{"type": "text_delta", "text": token} for token in answer.tokens]
        if not is_text:
            deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
        for number, delta in enumerate(deltas, index):
            yield answer.pause(number)
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    yield answer.pause(len(answer.tokens) + len(answer.tool_calls))
    reason = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _event("message_delta", delta=reason, usage={"output_tokens": whole["usage"]["output_tokens"]})
    yield _event("message_stop")


def _event(kind: str, **fields: Any) -> Step:
    return send({"type": kind, **fields}, kind)
