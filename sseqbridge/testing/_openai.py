"""A script that answers like OpenAI's chat completions API.

Pure functions of the request, which the server calls on its loop thread.
Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from ._steps import ReceivedRequest, Script, Step, raw, respond, send, wait

__all__ = ["chat_completions"]


def chat_completions(answer: str | Iterable[str] | None = None, *, delay: float = 0.0, model: str = "echo") -> Script:
    """Return a script that answers like OpenAI's chat completions API, streamed if the request has `"stream": true`.

    `answer` is a text, sent word by word, or a list of tokens; by default it is the last user message of the request.
    `delay` is in seconds, before each token. Other requests get status 400 and OpenAI's error object.
    Source: https://platform.openai.com/docs/api-reference/chat
    """
    fixed = answer if answer is None or isinstance(answer, str) else list(answer)

    def script(request: ReceivedRequest) -> Iterator[Step]:
        call = _chat_call(request)
        if call is None:
            message = "POST a JSON object with a list of messages"
            error = {"message": message, "type": "invalid_request_error", "param": "messages", "code": None}
            yield from _json_response(400, {"error": error})
            return
        reply = _last_user_text(call["messages"]) if fixed is None else fixed
        tokens = re.findall(r"\S+\s*|\s+", reply) if isinstance(reply, str) else reply
        base = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        if call.get("stream"):
            yield from _chat_chunks(base, tokens, delay)
        else:
            yield wait(delay * len(tokens))
            yield from _json_response(200, _chat_completion(base, tokens))

    return script


def _chat_call(request: ReceivedRequest) -> dict[str, Any] | None:
    try:
        call = request.json()
    except ValueError:
        return None
    is_call = request.method == "POST" and isinstance(call, dict) and isinstance(call.get("messages"), list)
    return call if is_call else None


def _last_user_text(messages: list[Any]) -> str:
    texts = [_text(message) for message in messages if isinstance(message, dict) and message.get("role") == "user"]
    return texts[-1] if texts else ""


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)


def _chat_chunks(base: dict[str, Any], tokens: list[str], delay: float) -> Iterator[Step]:
    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> Step:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return send({**base, "object": "chat.completion.chunk", "choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    for token in tokens:
        yield wait(delay)
        yield chunk({"content": token})
    yield chunk({}, "stop")
    yield send("[DONE]")


def _chat_completion(base: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(tokens), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": len(tokens), "total_tokens": len(tokens)}
    return {**base, "object": "chat.completion", "choices": [choice], "usage": usage}


def _json_response(status: int, body: dict[str, Any]) -> Iterator[Step]:
    yield respond(status, framing="length", content_type="application/json")
    yield raw(json.dumps(body).encode())
