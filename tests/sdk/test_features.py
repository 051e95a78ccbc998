"""Features of the SDKs of OpenAI and Anthropic besides plain streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from pydantic import BaseModel

from sseqbridge import BridgeTransport
from sseqbridge.testing import SSEServer, raw, reset, respond, silence
from tests.clock import FakeClock
from tests.sdk.answers import chat_steps, message_steps, response_steps
from tests.sdk.clients import MESSAGES
from tests.support import in_thread, is_waiting, until

CALL: Any = {"model": "test", "messages": MESSAGES}


class City(BaseModel):
    """A structured output."""

    name: str
    people: int


@pytest.fixture
def server() -> Iterator[SSEServer]:
    """A server that answers like OpenAI's chat completions."""
    with SSEServer(chat_steps()) as server:
        yield server


@pytest.fixture
def client(server: SSEServer) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the server."""
    http_client = openai.DefaultHttpxClient(transport=BridgeTransport())
    with openai.OpenAI(base_url=server.url, api_key="sk-test", http_client=http_client) as client:
        yield client


@pytest.fixture
def claude(server: SSEServer) -> Iterator[anthropic.Anthropic]:
    """Anthropic's client of the server."""
    http_client = httpx2.Client(transport=BridgeTransport())
    with anthropic.Anthropic(base_url=server.url, api_key="test", http_client=http_client) as client:
        yield client


def json_answer(content: str) -> list[Any]:
    body = (
        '{"id":"1","object":"chat.completion","created":1,"model":"test","choices":[{"index":0,"finish_reason":"stop",'
        '"message":{"role":"assistant","content":%s,"refusal":null}}]}'
    )
    return [respond(framing="length", content_type="application/json"), raw((body % content).encode())]


def test_a_completion_without_a_stream(server: SSEServer, client: openai.OpenAI) -> None:
    server.play(json_answer('"Hi"'))
    assert client.chat.completions.create(**CALL).choices[0].message.content == "Hi"


def test_structured_output(server: SSEServer, client: openai.OpenAI) -> None:
    server.play(json_answer('"{\\"name\\":\\"Bern\\",\\"people\\":130000}"'))
    parsed = client.chat.completions.parse(response_format=City, **CALL).choices[0].message.parsed
    assert parsed == City(name="Bern", people=130_000)


def test_structured_output_of_a_stream(server: SSEServer, client: openai.OpenAI) -> None:
    server.play(chat_steps(['{"name":', '"Bern",', '"people":1}']))
    with client.chat.completions.stream(response_format=City, **CALL) as stream:
        assert "content.delta" in [event.type for event in stream]
        assert stream.get_final_completion().choices[0].message.parsed == City(name="Bern", people=1)


def test_the_stream_manager_of_responses(server: SSEServer, client: openai.OpenAI) -> None:
    server.play(response_steps())
    with client.responses.stream(model="test", input="Hello") as stream:
        assert sum(event.type == "response.output_text.delta" for event in stream) == 3
        assert stream.get_final_response().output_text == "Hello, world"


def test_a_raw_response(server: SSEServer, client: openai.OpenAI) -> None:
    server.play(json_answer('"Hi"'))
    response = client.chat.completions.with_raw_response.create(**CALL)
    assert response.headers["content-type"] == "application/json"
    completion: Any = response.parse()
    assert completion.choices[0].message.content == "Hi"


def test_a_streamed_raw_response_can_be_left(server: SSEServer, client: openai.OpenAI) -> None:
    server.play([*chat_steps()[:2], silence()])
    with client.chat.completions.with_streaming_response.create(stream=True, **CALL) as response:
        for line in response.iter_lines():
            if "Hello" in line:
                break
    server.requests[0].wait_aborted()


def test_an_error_status(server: SSEServer, client: openai.OpenAI) -> None:
    server.play([respond(400, content_type="application/json"), raw(b'{"error": {"message": "no", "code": "bad"}}')])
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**CALL)
    assert caught.value.code == "bad"


def test_a_connection_that_breaks_is_retried(server: SSEServer, client: openai.OpenAI) -> None:
    server.play([reset()], json_answer('"Hi"'))
    retrying = client.with_options(max_retries=1)
    assert retrying.chat.completions.create(**CALL).choices[0].message.content == "Hi"


def test_a_timeout_of_a_call_is_retried(clock: FakeClock, server: SSEServer) -> None:
    server.play([silence()], json_answer('"Hi"'))
    # The client of the fixture has a bridge on the real clock.
    http_client = openai.DefaultHttpxClient(transport=BridgeTransport())
    with openai.OpenAI(base_url=server.url, api_key="test", http_client=http_client, timeout=30) as client:
        asking = in_thread(lambda: client.chat.completions.create(**CALL))
        clock.advance_until(asking.done)
        assert asking.result().choices[0].message.content == "Hi"


def test_a_file_is_uploaded(server: SSEServer, client: openai.OpenAI) -> None:
    body = b'{"id":"f","object":"file","bytes":1,"created_at":1,"filename":"a","purpose":"batch","status":"processed"}'
    server.play([respond(framing="length", content_type="application/json"), raw(body)])
    assert client.files.create(file=("a.jsonl", b"x" * 300_000), purpose="batch").id == "f"
    assert b"x" * 300_000 in server.requests[0].body


def test_closing_the_client_ends_its_requests(server: SSEServer, client: openai.OpenAI) -> None:
    server.play([silence()])
    asking = in_thread(lambda: client.with_options(max_retries=0).chat.completions.create(**CALL))
    until(lambda: is_waiting(asking) and server.requests)
    client.close()
    assert isinstance(asking.exception(30), openai.APIConnectionError)
    server.requests[0].wait_aborted()


def test_claudes_message_stream(server: SSEServer, claude: anthropic.Anthropic) -> None:
    server.play(message_steps())
    with claude.messages.stream(max_tokens=9, **CALL) as stream:
        assert list(stream.text_stream) == ["Hello", ", ", "world"]
        assert stream.get_final_text() == "Hello, world"


def test_claudes_message_stream_can_be_closed(server: SSEServer, claude: anthropic.Anthropic) -> None:
    server.play([*message_steps()[:4], silence()])
    with claude.messages.stream(max_tokens=9, **CALL) as stream:
        reading = in_thread(lambda: list(stream.text_stream))
        until(lambda: is_waiting(reading))
        stream.close()
        assert isinstance(reading.exception(30), httpx2.ReadError)
    server.requests[0].wait_aborted()


def test_claude_is_asked_again_when_overloaded(server: SSEServer, claude: anthropic.Anthropic) -> None:
    overloaded = [respond(529, {"Retry-After-Ms": "1"}, content_type="application/json"), raw(b"{}")]
    body = b'{"id":"m","type":"message","role":"assistant","model":"test","content":[{"type":"text","text":"Hi"}]}'
    server.play(overloaded, [respond(framing="length", content_type="application/json"), raw(body)])
    message: Any = claude.messages.create(max_tokens=9, **CALL)
    assert message.content[0].text == "Hi"
    assert len(server.requests) == 2
