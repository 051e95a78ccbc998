"""pydantic-ai: an agent's streamed answer as a plain `for` loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from sseqbridge import enter, iterate, run
from sseqbridge.testing import SSEServer, chat_completions, silence

pydantic_ai = pytest.importorskip("pydantic_ai", reason="needs the extra sdk")

# The SDKs import modules, and read files, when they are first used.
pytestmark = [pytest.mark.sdk, pytest.mark.blocks_its_loop, pytest.mark.leaves("thread")]


@asynccontextmanager
async def open_agent(url: str) -> AsyncIterator[Any]:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async with openai.AsyncOpenAI(api_key="test", base_url=f"{url}/v1", max_retries=0) as client:
        yield pydantic_ai.Agent(OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client)))


async def deltas(agent: Any) -> AsyncIterator[str]:
    async with agent.run_stream("Hello there, agent!") as result:
        async for delta in result.stream_text(delta=True, debounce_by=None):
            yield delta


def test_answer_comes_by_a_plain_loop() -> None:
    with SSEServer(chat_completions()) as server, enter(open_agent(server.url)) as agent:
        assert "".join(iterate(deltas(agent))) == "Hello there, agent!"


def test_answer_is_read_inside_a_block() -> None:
    with (
        SSEServer(chat_completions()) as server,
        enter(open_agent(server.url)) as agent,
        enter(agent.run_stream("Hello there, agent!")) as result,
    ):
        assert list(iterate(result.stream_text(debounce_by=None)))[-1] == "Hello there, agent!"
        assert run(result.get_output()) == "Hello there, agent!"


def test_leaving_the_loop_aborts_the_request() -> None:
    def script(request: Any) -> Any:
        yield from list(chat_completions()(request))[:3]
        yield silence()

    with SSEServer(script) as server, enter(open_agent(server.url)) as agent:
        for _ in iterate(deltas(agent)):
            break
        server.requests[0].wait_aborted()
