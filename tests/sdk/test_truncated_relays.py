"""A relay whose upstream is cut in mid-answer, read by the SDKs themselves: no SDK takes the answer for a whole one.

The relays are served by Flask on Werkzeug, in this process. The SDKs are used as they are, without a BridgeTransport.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anthropic
import cohere
import flask
import groq
import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from mistralai.client import Mistral
from mistralai.client.errors import ResponseValidationError
from pydantic import SecretStr
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from sseqbridge import ServerSentEvent, relay, request_sse
from sseqbridge.testing import SSEServer, Step, cut, silence
from tests.local_servers import under_werkzeug
from tests.sdk.answers import chat_steps, cohere_steps, message_steps, response_steps
from tests.sdk.clients import MESSAGES
from tests.support import ROOT

# The SDKs import modules, and read files, when they are first used.
pytestmark = [pytest.mark.blocks_its_loop, pytest.mark.leaves("thread")]

CUT_OFF = "the upstream's stream was cut off"
# The path of an API without a dialect of its own.
COHERE = "v2/chat"
DIALECTS: dict[str, Any] = {"v1/messages": "anthropic", COHERE: "events"}


class Relays:
    """An application that relays `upstream` under every path, at `url`. `sends` is "stream" or "iterable"."""

    def __init__(self) -> None:
        self.upstream = SSEServer()
        self.sends = "stream"
        self.options: dict[str, Any] = {}
        self.cancel = threading.Event()
        self.url = ""
        self.app = flask.Flask(__name__)
        self.app.add_url_rule("/<path:path>", "relay", self._relay, methods=["POST"])

    def _relay(self, path: str) -> flask.Response:
        # Werkzeug waits for what a view has not read of a request, also after an error that breaks the response off.
        assert flask.request.get_data()
        if self.sends == "iterable":
            return relay.flask.stream_response(self._events(), **self.options)
        response = request_sse(self.upstream.url, dialect=DIALECTS.get(path, "openai"), cancel=self.cancel)
        return relay.flask.stream_response(response, **self.options)

    def _events(self) -> Iterator[ServerSentEvent]:
        yield from request_sse(self.upstream.url, decode="event", dialect="events").events


@pytest.fixture
def relays() -> Iterator[Relays]:
    relays = Relays()
    with relays.upstream, under_werkzeug(relays.app) as relays.url:
        yield relays


@dataclass(frozen=True)
class Way:
    """One way in which an SDK reads a stream. `read` yields the texts; `error` is what it raises for a cut answer."""

    name: str
    steps: Callable[[], list[Step]]
    read: Callable[[str], Iterator[str | None]]
    error: type[Exception]
    # Whether the error has the relay's message.
    has_message: bool = True

    def __str__(self) -> str:
        return self.name

    def cut_steps(self) -> list[Step]:
        """Return the answer up to its first word, and the cut."""
        steps = self.steps()
        return [*steps[: 1 + next(n for n, step in enumerate(steps) if b"Hello" in cast("bytes", step))], cut()]


def _openai(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0)


def _chat(url: str) -> Iterator[str | None]:
    with _openai(url) as client:
        for chunk in client.chat.completions.create(model="test", messages=MESSAGES, stream=True):
            yield chunk.choices[0].delta.content


def _chat_stream(url: str) -> Iterator[str | None]:
    with _openai(url) as client, client.chat.completions.stream(model="test", messages=MESSAGES) as stream:
        for event in stream:
            if event.type == "content.delta":
                yield event.delta
        assert stream.get_final_completion().choices[0].finish_reason == "stop"


def _responses(url: str) -> Iterator[str | None]:
    with _openai(url) as client:
        for event in client.responses.create(model="test", input="Hello", stream=True):
            if event.type == "response.output_text.delta":
                yield event.delta


def _responses_stream(url: str) -> Iterator[str | None]:
    with _openai(url) as client, client.responses.stream(model="test", input="Hello") as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                yield event.delta
        assert stream.get_final_response().status == "completed"


def _in_a_loop(items: Callable[[str], AsyncIterator[str | None]]) -> Callable[[str], Iterator[str | None]]:
    """Return a function that reads an asynchronous SDK's stream on a loop of its own."""

    def read(url: str) -> Iterator[str | None]:
        texts: list[str | None] = []

        async def collect() -> None:
            async for text in items(url):
                texts.append(text)  # noqa: PERF401 (each as it comes)

        try:
            asyncio.run(collect())
        finally:
            yield from texts

    return read


async def _async_chat(url: str) -> AsyncIterator[str | None]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0) as client:
        async for chunk in await client.chat.completions.create(model="test", messages=MESSAGES, stream=True):
            yield chunk.choices[0].delta.content


async def _pydantic_ai(url: str) -> AsyncIterator[str | None]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0) as client:
        agent = Agent(OpenAIChatModel("test", provider=OpenAIProvider(openai_client=client)))
        async with agent.run_stream("Hello") as result:
            async for text in result.stream_text(delta=True, debounce_by=None):
                yield text


def _anthropic(url: str) -> Iterator[str | None]:
    with anthropic.Anthropic(base_url=url, api_key="test", max_retries=0) as client:
        for event in client.messages.create(model="test", max_tokens=9, messages=MESSAGES, stream=True):
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                yield event.delta.text


def _anthropic_stream(url: str) -> Iterator[str | None]:
    with (
        anthropic.Anthropic(base_url=url, api_key="test", max_retries=0) as client,
        client.messages.stream(model="test", max_tokens=9, messages=MESSAGES) as stream,
    ):
        yield from stream.text_stream


def _groq(url: str) -> Iterator[str | None]:
    with groq.Groq(base_url=url, api_key="test", max_retries=0) as client:
        # Its path begins with /openai.
        for chunk in client.chat.completions.create(model="test", messages=MESSAGES, stream=True):
            yield chunk.choices[0].delta.content


def _langchain(url: str) -> Iterator[str | None]:
    model = ChatOpenAI(base_url=f"{url}/v1", api_key=SecretStr("sk-test"), model="test", max_retries=0)
    for chunk in model.stream("Hello"):
        assert isinstance(chunk.content, str)
        yield chunk.content


def _mistral(url: str) -> Iterator[str | None]:
    with Mistral(server_url=url, api_key="test") as client:
        for event in client.chat.stream(model="test", messages=MESSAGES):
            content: Any = event.data.choices[0].delta.content
            yield content if isinstance(content, str) else None


def _cohere(url: str) -> Iterator[str | None]:
    with httpx.Client() as http_client:
        client = cohere.ClientV2(api_key="test", base_url=url, httpx_client=http_client)
        for event in client.chat_stream(model="test", messages=MESSAGES):
            if event.type == "content-delta":
                delta: Any = event.delta
                yield delta.message.content.text
            elif event.type == "message-end":
                ended: Any = event.delta
                yield {"COMPLETE": "", "ERROR": " (it failed)"}[ended.finish_reason]


WAYS = [
    Way("openai chat", chat_steps, _chat, openai.APIError),
    Way("openai chat.stream", chat_steps, _chat_stream, openai.APIError),
    Way("openai chat, asynchronous", chat_steps, _in_a_loop(_async_chat), openai.APIError),
    Way("openai responses", response_steps, _responses, openai.APIError),
    Way("openai responses.stream", response_steps, _responses_stream, openai.APIError),
    Way("langchain-openai", chat_steps, _langchain, openai.APIError),
    Way("pydantic-ai", chat_steps, _in_a_loop(_pydantic_ai), ModelAPIError),
    Way("groq", chat_steps, _groq, groq.APIError),
    Way("anthropic", message_steps, _anthropic, anthropic.APIStatusError),
    Way("anthropic messages.stream", message_steps, _anthropic_stream, anthropic.APIStatusError),
    # It has no event for errors, and validates each chunk.
    Way("mistralai", chat_steps, _mistral, ResponseValidationError, has_message=False),
]
COHERE_WAY = Way("cohere", cohere_steps, _cohere, httpx.RemoteProtocolError)

every_way = pytest.mark.parametrize("way", WAYS, ids=str)
both_sources = pytest.mark.parametrize("sends", ["stream", "iterable"])


def texts_and_error(way: Way, url: str) -> tuple[str, Exception | None]:
    """Read an answer. Returns the text, and the error that the SDK raised."""
    texts: list[str] = []
    try:
        for text in way.read(url):
            texts.append(text or "")  # noqa: PERF401 (each as it comes)
    except Exception as error:
        return "".join(texts), error
    return "".join(texts), None


@pytest.mark.parametrize("way", [*WAYS, COHERE_WAY], ids=str)
@both_sources
def test_whole_answer_is_read(relays: Relays, way: Way, sends: str) -> None:
    relays.sends = sends
    relays.upstream.play(way.steps())
    assert texts_and_error(way, relays.url) == ("Hello, world", None)


@every_way
@both_sources
def test_cut_answer_is_an_error(relays: Relays, way: Way, sends: str) -> None:
    relays.sends = sends
    relays.upstream.play(way.cut_steps())
    text, error = texts_and_error(way, relays.url)
    assert text == "Hello"
    assert isinstance(error, way.error)
    assert (CUT_OFF in str(error)) == way.has_message
    assert len(relays.upstream.requests) == 1


ENDS: dict[str, Callable[[Relays], object]] = {
    "cancelled": lambda relays: relays.cancel.set(),
    "shutdown": lambda relays: relay.end_all(),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("way", [*WAYS, COHERE_WAY], ids=str)
def test_answer_that_is_ended_here_fails_in_most_sdks(relays: Relays, way: Way, end: str) -> None:
    """Anthropic's and Cohere's SDKs skip events that they do not know, such as `cancelled` and `shutdown`."""
    relays.options = {"on_item": lambda item: ENDS[end](relays) if "Hello" in json.dumps(item) else None}
    relays.upstream.play([*way.cut_steps()[:-1], silence()])
    text, error = texts_and_error(way, relays.url)
    assert text == "Hello"
    if way.name.startswith(("anthropic", "cohere")):
        # If this fails, the SDK has learnt to see them: change the guide.
        assert error is None
    else:
        # Groq's yields the event as a chunk without choices.
        assert isinstance(error, TypeError if way.name == "groq" else way.error)


def raise_it(error: BaseException) -> Any:
    raise error


@every_way
def test_connection_that_is_broken_off_is_an_error(relays: Relays, way: Way) -> None:
    relays.options = {"error": raise_it}
    relays.upstream.play(way.cut_steps())
    text, error = texts_and_error(way, relays.url)
    assert text == "Hello"
    assert isinstance(error, Exception)
    assert CUT_OFF not in str(error)


# Cohere's SDK skips each event that is none of its own, and logs a warning: no other event is an error for it.


def test_cohere_does_not_see_the_default_error(relays: Relays, caplog: pytest.LogCaptureFixture) -> None:
    """If this fails, its SDK has learnt to see errors: change the guide."""
    relays.upstream.play(COHERE_WAY.cut_steps())
    assert texts_and_error(COHERE_WAY, relays.url) == ("Hello", None)


def test_cohere_sees_a_connection_that_is_broken_off(relays: Relays) -> None:
    relays.options = {"error": raise_it}
    relays.upstream.play(COHERE_WAY.cut_steps())
    text, error = texts_and_error(COHERE_WAY, relays.url)
    assert text == "Hello"
    assert isinstance(error, COHERE_WAY.error)


def test_cohere_sees_an_end_of_its_own_kind(relays: Relays) -> None:
    relays.options = {"error": cohere_error}
    relays.upstream.play(COHERE_WAY.cut_steps())
    assert texts_and_error(COHERE_WAY, relays.url) == ("Hello (it failed)", None)


def cohere_error(error: BaseException) -> ServerSentEvent:
    """The function of the guide."""
    end = {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": type(error).__name__}}
    return ServerSentEvent("message-end", json.dumps(end))


# SDKs for JavaScript.

NODE_WAYS = {
    "chat": chat_steps,
    "chat.stream": chat_steps,
    "responses": response_steps,
    "responses.stream": response_steps,
    "ai": chat_steps,
}
every_node_way = pytest.mark.parametrize("name", NODE_WAYS)


def read_with_node(name: str, url: str) -> tuple[str, str | None]:
    """Read an answer with an SDK from npm. Returns the text, and the message of the error."""
    directory = Path(sys.prefix) / "npm"
    for package in ("openai", "ai", "@ai-sdk/openai-compatible"):
        if not (directory / "node_modules" / package).is_dir():
            pytest.skip(f"npm install --prefix {directory} {package} was not run")
    command = ["node", str(ROOT / "tests/sdk/read_stream.cjs"), str(directory), url, name]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True)
    result = json.loads(ran.stdout)
    return result["text"], result["error"]


@every_node_way
def test_whole_answer_is_read_by_node(relays: Relays, name: str) -> None:
    relays.upstream.play(NODE_WAYS[name]())
    assert read_with_node(name, relays.url) == ("Hello, world", None)


@every_node_way
def test_cut_answer_is_an_error_for_node(relays: Relays, name: str) -> None:
    relays.upstream.play(Way(name, NODE_WAYS[name], _chat, Exception).cut_steps())
    assert read_with_node(name, relays.url) == ("Hello", CUT_OFF)
    assert len(relays.upstream.requests) == 1


# Node's fetch takes the end of a connection for the end of the response if the server has sent `Connection: close`, as
# Werkzeug does, although the last chunk is missing. The others miss the end of the answer itself.
NOT_SEEN_BY_NODE = ("chat", "responses", "responses.stream")


@every_node_way
def test_node_may_not_see_a_connection_that_is_broken_off(relays: Relays, name: str) -> None:
    """If this fails, Node has learnt to see it: change the guide."""
    relays.options = {"error": raise_it}
    relays.upstream.play(Way(name, NODE_WAYS[name], _chat, Exception).cut_steps())
    text, error = read_with_node(name, relays.url)
    assert text == "Hello"
    assert (error is None) == (name in NOT_SEEN_BY_NODE)
