"""AsyncOpenAI: a stream of chat completions as a plain `for` loop."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from sseqbridge import iterate, run
from sseqbridge.testing import SSEServer, chat_completions, respond, silence
from tests.support import until

# The SDK imports modules, and reads files, when it is first used, and has the loop's executor look at the platform.
pytestmark = [pytest.mark.blocks_its_loop, pytest.mark.leaves("thread")]

MESSAGES: list[Any] = [{"role": "user", "content": "Hello there!"}]


async def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="test", base_url=f"{url}/v1", max_retries=0)


def text_of(chunks: Any) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_chunks_come_by_a_plain_loop() -> None:
    with SSEServer(chat_completions()) as server:
        client = run(client_of(server.url))
        stream = iterate(lambda: client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
        assert text_of(stream) == "Hello there!"
        answer = run(client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES))
        assert answer.status_code == 200
        run(client.close())


def test_several_streams_run_on_one_client() -> None:
    with SSEServer(chat_completions()) as server:
        client = run(client_of(server.url))
        streams = [
            iterate(lambda: client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
            for _ in range(5)
        ]
        assert [text_of(stream) for stream in streams] == ["Hello there!"] * 5
        run(client.close())


def test_leaving_the_loop_aborts_the_request() -> None:
    def script(request: Any) -> Any:
        yield from list(chat_completions()(request))[:2]
        yield silence()

    with SSEServer(script) as server:
        client = run(client_of(server.url))
        for _ in iterate(lambda: client.chat.completions.create(model="m", messages=MESSAGES, stream=True)):
            break
        server.requests[0].wait_aborted()
        run(client.close())


def test_error_is_that_of_the_sdk() -> None:
    with SSEServer([respond(400, content_type="application/json"), b'{"error": {"message": "no"}}']) as server:
        client = run(client_of(server.url))
        with pytest.raises(openai.BadRequestError):
            next(iterate(lambda: client.chat.completions.create(model="m", messages=MESSAGES, stream=True)))
        run(client.close())


def test_stream_object_is_closed_when_the_loop_is_left() -> None:
    def script(request: Any) -> Any:
        yield from list(chat_completions()(request))[:2]
        yield silence()

    with SSEServer(script) as server:
        client = run(client_of(server.url))
        made = run(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
        for _ in iterate(made):
            break
        server.requests[0].wait_aborted()
        until(lambda: made.response.is_closed)
        run(client.close())
