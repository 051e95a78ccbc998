"""Scripts that answer like OpenAI's APIs: chat completions and Responses.

Pure functions of the request, which the server calls on its loop thread.
Sources:
https://platform.openai.com/docs/api-reference/chat
https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ._answers import Answer, builder
from ._steps import Step, send

__all__ = ["chat_completions", "openai_responses"]

_INVALID = {"type": "invalid_request_error", "code": None}


def _list(value: Any) -> list[Any] | None:
    return value if isinstance(value, list) else None


def _is(value: Any, key: str, wanted: str) -> bool:
    return isinstance(value, dict) and value.get(key) == wanted


@builder(
    read=lambda body: _list(body.get("messages")),
    has_results=lambda messages: any(_is(message, "role", "tool") for message in messages),
    refusal={"error": {**_INVALID, "message": "POST a JSON object with a list of messages", "param": "messages"}},
)
def chat_completions(answer: Answer) -> Iterator[Step]:
    """Return a script that answers like OpenAI's chat completions API, streamed if the request has `"stream": true`.

        SSEServer(chat_completions("It is sunny.", tool_calls=[("weather", {"city": "Oslo"})]))

    Source: https://platform.openai.com/docs/api-reference/chat
    """
    base = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": answer.model}
    return _chat_chunks(answer, base) if answer.is_streamed else answer.whole(_chat_completion(answer, base))


def _chat_chunks(answer: Answer, base: dict[str, Any]) -> Iterator[Step]:
    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> Step:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return send({**base, "object": "chat.completion.chunk", "choices": [choice]})

    yield chunk({"role": "assistant", "content": None if answer.tool_calls else ""})
    calls = (chunk({"tool_calls": [call]}) for call in _chat_calls(answer, are_chunks=True))
    yield from answer.paced(itertools.chain((chunk({"content": token}) for token in answer.tokens), calls))
    yield chunk({}, "tool_calls" if answer.tool_calls else "stop")
    yield send("[DONE]")


def _chat_calls(answer: Answer, *, are_chunks: bool) -> list[dict[str, Any]]:
    return [
        {
            **({"index": index} if are_chunks else {}),
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for index, (name, arguments) in enumerate(answer.tool_calls)
    ]


def _chat_completion(answer: Answer, base: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.tool_calls:
        message = {**message, "content": None, "tool_calls": _chat_calls(answer, are_chunks=False)}
    reason = "tool_calls" if answer.tool_calls else "stop"
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    count = len(answer.tokens)
    usage = {"prompt_tokens": 0, "completion_tokens": count, "total_tokens": count}
    return {**base, "object": "chat.completion", "choices": [choice], "usage": usage}


def _input(value: Any) -> list[Any] | None:
    return [{"role": "user", "content": value}] if isinstance(value, str) else _list(value)


@builder(
    read=lambda body: _input(body.get("input")),
    has_results=lambda items: any(_is(item, "type", "function_call_output") for item in items),
    refusal={"error": {**_INVALID, "message": "POST a JSON object with an input", "param": "input"}},
)
def openai_responses(answer: Answer) -> Iterator[Step]:
    """Return a script that answers like OpenAI's Responses API, streamed if the request has `"stream": true`.

        SSEServer(openai_responses("It is sunny."))

    Source: https://platform.openai.com/docs/api-reference/responses-streaming
    """
    base: dict[str, Any] = {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "model": answer.model,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": answer.request.get("tools", []),
    }
    count = len(answer.tokens)
    usage = {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": count,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": count,
    }
    items = [_message(answer.text)] if not answer.tool_calls else [_call(*call) for call in answer.tool_calls]
    whole = {**base, "status": "completed", "output": items, "usage": usage}
    if not answer.is_streamed:
        return answer.whole(whole)
    return _numbered(_response_events(answer, {**base, "status": "in_progress", "output": []}, whole, items))


def _message(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": content,
    }


def _call(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": f"fc_{uuid.uuid4().hex}",
        "type": "function_call",
        "call_id": f"call_{uuid.uuid4().hex[:24]}",
        "name": name,
        "arguments": json.dumps(arguments),
        "status": "completed",
    }


def _numbered(events: Iterable[Step | dict[str, Any]]) -> Iterator[Step]:
    numbers = itertools.count()
    for event in events:
        if isinstance(event, dict):
            yield send({**event, "sequence_number": next(numbers)}, event["type"])
        else:
            yield event


def _response_events(
    answer: Answer, begun: dict[str, Any], whole: dict[str, Any], items: list[dict[str, Any]]
) -> Iterator[Step | dict[str, Any]]:
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(items):
        if item["type"] == "message":
            yield from _message_events(answer, item, {"item_id": item["id"], "output_index": index})
        else:
            yield answer.pause(index)
            yield from _call_events(item, {"item_id": item["id"], "output_index": index})
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield answer.pause(len(answer.tokens) + len(answer.tool_calls))
    yield {"type": "response.completed", "response": whole}


def _message_events(answer: Answer, item: dict[str, Any], at: dict[str, Any]) -> Iterator[Step | dict[str, Any]]:
    begun = {**item, "status": "in_progress", "content": []}
    yield {"type": "response.output_item.added", "output_index": at["output_index"], "item": begun}
    at = {**at, "content_index": 0}
    [part] = item["content"]
    yield {"type": "response.content_part.added", **at, "part": {**part, "text": ""}}
    for number, token in enumerate(answer.tokens):
        yield answer.pause(number)
        yield {"type": "response.output_text.delta", **at, "delta": token, "logprobs": []}
    yield {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []}
    yield {"type": "response.content_part.done", **at, "part": part}


def _call_events(item: dict[str, Any], at: dict[str, Any]) -> Iterator[dict[str, Any]]:
    begun = {**item, "status": "in_progress", "arguments": ""}
    yield {"type": "response.output_item.added", "output_index": at["output_index"], "item": begun}
    yield {"type": "response.function_call_arguments.delta", **at, "delta": item["arguments"]}
    done = {"type": "response.function_call_arguments.done", **at, "name": item["name"]}
    yield {**done, "arguments": item["arguments"]}
