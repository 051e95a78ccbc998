"""The SDKs' clients on a BridgeTransport, and the two providers' streams as text. Knows no web framework."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import anthropic
import openai

from sseqbridge import BridgeTransport, TruncatedStreamError

__all__ = ["ERRORS", "PROVIDERS", "Provider", "WholeAnswer", "refusal"]

# Errors that the SDKs raise before the answer begins; a relay reports later errors itself.
ERRORS = (openai.OpenAIError, anthropic.AnthropicError)

# One connection pool for both SDKs. `idle` ends a stream that says nothing for so long, heartbeats or not.
_transport = BridgeTransport(idle=60)


class WholeAnswer:
    """The chunks of an SDK's stream. Raises TruncatedStreamError at the end if none was the last of an answer."""

    def __init__(self, stream: Any, is_last: Callable[[Any], object]) -> None:
        self._stream = stream
        self._is_last = is_last

    def __iter__(self) -> Iterator[Any]:
        has_ended = False
        for chunk in self._stream:
            has_ended = has_ended or bool(self._is_last(chunk))
            yield chunk
        if not has_ended:
            raise TruncatedStreamError("the answer was cut off")

    def close(self) -> None:  # The relay calls it, also if it has read nothing.
        self._stream.close()


class Provider(NamedTuple):
    """`ask` sends a prompt and returns the SDK's chunks; `text` returns a chunk's text, None if it has none."""

    ask: Callable[[str], WholeAnswer]
    text: Callable[[Any], str | None]


def refusal(error: Exception) -> tuple[int, dict[str, str]]:
    """Return the status and headers for an SDK's error: 429 and 503 with Retry-After, 504 for a timeout, else 502."""
    if isinstance(error, (openai.APITimeoutError, anthropic.APITimeoutError)):
        return 504, {}
    if isinstance(error, (openai.APIStatusError, anthropic.APIStatusError)) and error.status_code in (429, 503):
        seconds = error.response.headers.get("retry-after", "")
        return error.status_code, {"Retry-After": seconds} if seconds.isdigit() else {}
    return 502, {}


@functools.cache
def _openai() -> openai.OpenAI:
    return openai.OpenAI(http_client=openai.DefaultHttpxClient(transport=_transport))


@functools.cache
def _anthropic() -> anthropic.Anthropic:
    return anthropic.Anthropic(http_client=anthropic.DefaultHttpxClient(transport=_transport))


def _ask_openai(prompt: str) -> WholeAnswer:
    model = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
    messages: Any = [{"role": "user", "content": prompt}]
    stream = _openai().chat.completions.create(model=model, messages=messages, stream=True)
    return WholeAnswer(stream, lambda chunk: any(choice.finish_reason for choice in chunk.choices))


def _openai_text(chunk: Any) -> str | None:
    text: str | None = chunk.choices[0].delta.content if chunk.choices else None
    return text or None


def _ask_anthropic(prompt: str) -> WholeAnswer:
    model = os.environ.get("ANTHROPIC_MODEL", "claude-sonnet-5")
    messages: Any = [{"role": "user", "content": prompt}]
    stream = _anthropic().messages.create(model=model, max_tokens=1024, messages=messages, stream=True)
    return WholeAnswer(stream, lambda event: event.type == "message_stop")


def _anthropic_text(event: Any) -> str | None:
    is_text = event.type == "content_block_delta" and event.delta.type == "text_delta"
    return event.delta.text if is_text else None


PROVIDERS = {
    "openai": Provider(_ask_openai, _openai_text),
    "anthropic": Provider(_ask_anthropic, _anthropic_text),
}
