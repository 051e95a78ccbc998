"""chat_completions(): read by the OpenAI SDK, and compared with the exact format."""

from __future__ import annotations

import json
import time

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from sseqbridge.testing import (
    SSEServer,
    chat_completions,
)

# Importing the SDK takes a second.
pytestmark = pytest.mark.slow

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Not this"},
    {"role": "assistant", "content": "What?"},
    {"role": "user", "content": "Say  it again"},
]


def openai_client(server: SSEServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_openai_reads_the_echo_word_by_word() -> None:
    with SSEServer() as server, openai_client(server) as client:
        chunks = list(client.chat.completions.create(model="any", messages=MESSAGES, stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "Say  ", "it ", "again", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 4 + ["stop"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {(chunk.object, chunk.model) for chunk in chunks} == {("chat.completion.chunk", "echo")}


@pytest.mark.parametrize("text", ["Two words", ["Two", " words"]])
def test_openai_reads_a_fixed_response(text: str | list[str]) -> None:
    with SSEServer(chat_completions(text, model="m")) as server, openai_client(server) as client:
        for _ in range(2):
            completion = client.chat.completions.create(model="any", messages=MESSAGES)
            assert completion.choices[0].message.content == "Two words"
    assert (completion.object, completion.model, completion.choices[0].finish_reason) == (
        "chat.completion",
        "m",
        "stop",
    )
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 2


@pytest.mark.slow
def test_delay_precedes_every_token() -> None:
    with SSEServer(chat_completions(iter("abc"), delay=0.05)) as server:
        for stream in (True, False):
            started = time.monotonic()
            httpx.post(server.url, json={"messages": [], "stream": stream})
            assert time.monotonic() - started >= 0.15


@pytest.mark.parametrize(
    ("messages", "echo"),
    [
        ([{"role": "user", "content": [{"type": "text", "text": "a "}, "?", {"type": "text", "text": "b"}]}], "a b"),
        ([{"role": "system", "content": "a"}, "?"], ""),
        ([], ""),
    ],
)
def test_echo_is_the_last_text_of_the_user(messages: list[object], echo: str) -> None:
    with SSEServer() as server:
        completion = httpx.post(server.url, json={"messages": messages}).json()
    assert completion["choices"][0]["message"]["content"] == echo


def test_stream_has_openais_exact_format() -> None:
    with SSEServer(chat_completions("hi")) as server:
        response = httpx.post(server.url, json={"messages": [], "stream": True})
    assert response.headers["content-type"] == "text/event-stream"
    lines = response.text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert lines[-2:] == ["data: [DONE]", ""]
    assert [chunk.pop("choices") for chunk in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "hi"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}],
    ]
    assert all(chunk == chunks[0] for chunk in chunks)
    assert list(chunks[0]) == ["id", "created", "model", "object"]


@pytest.mark.parametrize(
    ("method", "body"),
    [("GET", b""), ("PUT", b'{"messages": []}'), ("POST", b"{"), ("POST", b"[]"), ("POST", b'{"messages": "hi"}')],
)
def test_request_that_is_not_a_chat_gets_400(method: str, body: bytes) -> None:
    with SSEServer() as server:
        response = httpx.request(method, server.url, content=body)
    assert (response.status_code, response.headers["content-type"]) == (400, "application/json")
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_openai_reads_the_error() -> None:
    with (
        SSEServer() as server,
        openai_client(server) as client,
        pytest.raises(openai.BadRequestError, match="messages"),
    ):
        client.models.list()
