"""One interface to the streams of several SDKs: which client, which call, which text, which errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import anthropic
import cohere
import groq
import httpx
import httpx2
import openai
from langchain_openai import ChatOpenAI
from mistralai.client import Mistral
from mistralai.client.utils import BackoffStrategy, RetryConfig
from pydantic import RootModel, SecretStr

from sseqbridge import BridgeTransport
from sseqbridge.testing import Step
from tests.sdk.answers import chat_steps, cohere_steps, message_steps, response_steps

__all__ = ["MESSAGES", "SDK", "SDKS", "STRUCTURED"]

MESSAGES: Any = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True)
class SDK:
    """One way in which an SDK streams. `open` takes a client, `text` an item; `steps` are a whole answer.

    `aborted`, `timed_out` and `cut` are the errors of a reader. `is_closable`: whether another thread can close the
    stream. `is_retried`: whether the SDK repeats the request of a stream after 429.
    """

    name: str
    steps: Callable[[], list[Step]]
    make: Callable[[str, BridgeTransport, int], Any]
    open: Callable[[Any], Any]
    text: Callable[[Any], str | None]
    aborted: type[Exception]
    timed_out: type[Exception]
    cut: type[Exception]
    is_closable: bool = True
    is_retried: bool = True

    def __str__(self) -> str:
        return self.name

    def begin(self) -> list[Step]:
        """Return the steps of an answer up to its first word."""
        steps = self.steps()
        return steps[: 1 + next(number for number, step in enumerate(steps) if b"Hello" in cast("bytes", step))]

    @contextmanager
    def client(self, url: str, retries: int = 2, **options: Any) -> Iterator[Any]:
        """Yield a client of a server, on a BridgeTransport with `options`."""
        with BridgeTransport(**options) as transport:
            yield self.make(url, transport, retries)

    def texts(self, stream: Any) -> list[str]:
        """Read a stream to its end and return the texts of its items."""
        return [text for item in stream if (text := self.text(item))]


def _openai(url: str, transport: BridgeTransport, retries: int) -> Any:
    http_client = openai.DefaultHttpxClient(transport=transport)
    return openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test", http_client=http_client, max_retries=retries)


def _anthropic(url: str, transport: BridgeTransport, retries: int) -> Any:
    http_client = anthropic.DefaultHttpxClient(transport=transport)
    return anthropic.Anthropic(base_url=url, api_key="test", http_client=http_client, max_retries=retries)


def _groq(url: str, transport: BridgeTransport, retries: int) -> Any:
    http_client = httpx.Client(transport=transport)
    return groq.Groq(base_url=url, api_key="test", http_client=http_client, max_retries=retries)


def _langchain(url: str, transport: BridgeTransport, retries: int) -> Any:
    http_client = openai.DefaultHttpxClient(transport=transport)
    return ChatOpenAI(
        base_url=f"{url}/v1",
        api_key=SecretStr("sk-test"),
        model="test",
        http_client=http_client,
        max_retries=retries,
        stream_usage=False,
    )


def _mistral(url: str, transport: BridgeTransport, retries: int) -> Any:
    backoff = BackoffStrategy(initial_interval=10, max_interval=20, exponent=1.0, max_elapsed_time=30_000)
    return Mistral(
        server_url=url,
        api_key="test",
        client=httpx2.Client(transport=transport),
        retry_config=RetryConfig("backoff", backoff, retry_connection_errors=True) if retries else None,
    )


def _cohere(url: str, transport: BridgeTransport, retries: int) -> Any:
    return cohere.ClientV2(api_key="test", base_url=url, httpx_client=httpx.Client(transport=transport))


def _chat_text(chunk: Any) -> str | None:
    text: str | None = chunk.choices[0].delta.content
    return text


def _delta_text(event: Any) -> str | None:
    """Of an event of a stream manager."""
    text: str | None = event.delta if event.type in {"content.delta", "response.output_text.delta"} else None
    return text


SDKS = [
    SDK(
        "openai chat",
        chat_steps,
        _openai,
        lambda client: client.chat.completions.create(model="test", messages=MESSAGES, stream=True),
        _chat_text,
        openai.APIConnectionError,
        openai.APITimeoutError,
        openai.APIConnectionError,
    ),
    SDK(
        "openai chat.stream",
        chat_steps,
        _openai,
        lambda client: client.chat.completions.stream(model="test", messages=MESSAGES).__enter__(),
        _delta_text,
        openai.APIConnectionError,
        openai.APITimeoutError,
        openai.APIConnectionError,
    ),
    SDK(
        "openai raw response",
        chat_steps,
        _openai,
        lambda client: client.chat.completions.with_raw_response.create(
            model="test", messages=MESSAGES, stream=True
        ).parse(),
        _chat_text,
        openai.APIConnectionError,
        openai.APITimeoutError,
        openai.APIConnectionError,
    ),
    SDK(
        "openai responses",
        response_steps,
        _openai,
        lambda client: client.responses.create(model="test", input="Hello", stream=True),
        lambda event: event.delta if event.type == "response.output_text.delta" else None,
        openai.APIConnectionError,
        openai.APITimeoutError,
        openai.APIConnectionError,
    ),
    SDK(
        "openai responses.stream",
        response_steps,
        _openai,
        lambda client: client.responses.stream(model="test", input="Hello").__enter__(),
        _delta_text,
        openai.APIConnectionError,
        openai.APITimeoutError,
        openai.APIConnectionError,
    ),
    SDK(
        "anthropic",
        message_steps,
        _anthropic,
        lambda client: client.messages.create(model="test", max_tokens=9, messages=MESSAGES, stream=True),
        lambda event: event.delta.text if event.type == "content_block_delta" else None,
        httpx2.ReadError,
        httpx2.ReadTimeout,
        httpx2.RemoteProtocolError,
    ),
    SDK(
        "anthropic messages.stream",
        message_steps,
        _anthropic,
        lambda client: client.messages.stream(model="test", max_tokens=9, messages=MESSAGES).__enter__(),
        lambda event: event.text if event.type == "text" else None,
        httpx2.ReadError,
        httpx2.ReadTimeout,
        httpx2.RemoteProtocolError,
    ),
    SDK(
        "groq",
        chat_steps,
        _groq,
        lambda client: client.chat.completions.create(model="test", messages=MESSAGES, stream=True),
        _chat_text,
        httpx.ReadError,
        httpx.ReadTimeout,
        httpx.RemoteProtocolError,
    ),
    SDK(
        "mistralai",
        chat_steps,
        _mistral,
        lambda client: client.chat.stream(model="test", messages=MESSAGES),
        lambda event: _chat_text(event.data),
        httpx2.ReadError,
        httpx2.ReadTimeout,
        httpx2.RemoteProtocolError,
    ),
    SDK(
        "cohere",
        cohere_steps,
        _cohere,
        lambda client: client.chat_stream(model="test", messages=MESSAGES),
        lambda event: event.delta.message.content.text if event.type == "content-delta" else None,
        httpx.ReadError,
        httpx.ReadTimeout,
        httpx.RemoteProtocolError,
        is_closable=False,
        is_retried=False,
    ),
    SDK(
        "langchain-openai",
        chat_steps,
        _langchain,
        lambda client: client.stream("Hello"),
        lambda chunk: chunk.content,
        openai.APIConnectionError,
        openai.APITimeoutError,
        openai.APIConnectionError,
        is_closable=False,
    ),
]

# Its answers are JSON.
STRUCTURED = SDK(
    "openai structured output",
    lambda: chat_steps(["[", '"Hello"', ", ", '"world"', "]"]),
    _openai,
    lambda client: client.chat.completions.stream(
        model="test", messages=MESSAGES, response_format=RootModel[list[str]]
    ).__enter__(),
    lambda event: event.delta.strip('["]') if event.type == "content.delta" else None,
    openai.APIConnectionError,
    openai.APITimeoutError,
    openai.APIConnectionError,
)
