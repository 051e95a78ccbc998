"""The endpoint of the small examples: that of the environment, or a local one that repeats the question.

OPENAI_API_KEY selects OpenAI's, OPENAI_BASE_URL another one with the same protocol, OPENAI_MODEL the model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

from sseqbridge import SSEClient, SSEResponse, Timeout, arequest_sse, request_sse
from sseqbridge.testing import SSEServer, chat_completions

__all__ = ["Message", "aask", "ask", "body", "client", "text_of"]

Message = dict[str, str]


def ask(messages: Sequence[Message]) -> SSEResponse[Any]:
    """Request the answer to a conversation."""
    url, headers = _endpoint()
    return request_sse(
        f"{url}/chat/completions",
        headers,
        body(messages),
        timeout=Timeout(read=60, idle=60),  # a minute for the response's head, and between events
        require_done=True,  # an answer without `[DONE]` was cut off: TruncatedStreamError
    )


async def aask(messages: Sequence[Message]) -> Any:
    """Request the answer to a conversation, in a coroutine."""
    url, headers = _endpoint()
    timeout = Timeout(read=60, idle=60)  # a minute for the response's head, and between events
    return await arequest_sse(f"{url}/chat/completions", headers, body(messages), timeout=timeout, require_done=True)


def client(**options: Any) -> SSEClient[Any]:
    """Return a client for several requests to the endpoint, with options of SSEClient."""
    url, headers = _endpoint()
    return SSEClient(url, headers=headers, **options)


def body(messages: Sequence[Message]) -> dict[str, Any]:
    """Return the body of a request."""
    return {"model": os.environ.get("OPENAI_MODEL", "gpt-4o-mini"), "messages": list(messages), "stream": True}


def text_of(chunk: Any) -> str:
    """Return the text of one chunk. Chunks with usage or content filter results have no choices."""
    return "".join((choice.get("delta") or {}).get("content") or "" for choice in chunk.get("choices") or ())


def _endpoint() -> tuple[str, dict[str, str]]:
    key, base = os.environ.get("OPENAI_API_KEY"), os.environ.get("OPENAI_BASE_URL")
    url = base or ("https://api.openai.com/v1" if key else _local())
    return url, {"Authorization": f"Bearer {key}"} if key else {}


@cache
def _local() -> str:
    return SSEServer(chat_completions(delay=0.3)).start().url
