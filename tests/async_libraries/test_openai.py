"""AsyncOpenAI: a stream of chat completions as a plain `for` loop."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from subprocess import PIPE
from typing import Any

import openai
import pytest

from sseqbridge import iterate, run
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, chat_completions, respond, silence, wait
from tests.examples.guides import python
from tests.support import ROOT, until

# The SDK imports modules, and reads files, when it is first used, and has the loop's executor look at the platform.
pytestmark = [pytest.mark.slow, pytest.mark.blocks_its_loop, pytest.mark.leaves("thread")]

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


def test_program_of_the_guide_that_leaves_the_loop_ends_quietly() -> None:
    [code] = python("examples/async-libraries.md", "A stream: AsyncOpenAI in a script")
    shown = '    print(text, end="", flush=True)\n'
    assert code.endswith(shown)
    # The generator stands at its `yield`, and the server sends on.
    leaving = code.replace('("Hello!"))', '("Hello!"), max_buffered=1)').removesuffix(shown)
    leaving += "    if text:\n        input()\n        break\n"
    sent = threading.Event()

    def script(request: ReceivedRequest) -> Iterator[Step]:
        for number, step in enumerate(chat_completions("Hello there! " * 5000)(request)):
            if number == 20:
                sent.set()
            yield step
            yield wait(0.01)

    with SSEServer(script) as server:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "test", "OPENAI_BASE_URL": server.url}
        command = [sys.executable, "-c", leaving]
        with subprocess.Popen(command, env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
            assert sent.wait(60)
            _, errors = process.communicate("\n", timeout=60)
    # On a busy machine there is a warning that the loop was blocked.
    assert (process.returncode, "Error" in errors) == (0, False), errors


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
