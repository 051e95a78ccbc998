"""The builders of providers' APIs, read by the providers' SDKs: text, calls of tools, results, stalls, errors."""

from __future__ import annotations

import threading
from typing import Any

import anthropic
import httpx
import openai
import pytest

from sseqbridge import StreamTimeoutError, UsageError, request_sse
from sseqbridge.testing import (
    SSEServer,
    anthropic_messages,
    chat_completions,
    hold,
    openai_responses,
    respond,
    send,
)
from tests.clock import FakeClock
from tests.support import in_thread, until

# Importing the SDKs takes a second.
pytestmark = pytest.mark.slow

WEATHER = [("weather", {"city": "Oslo"}), ("clock", {})]
BUILDERS: list[Any] = [chat_completions, openai_responses, anthropic_messages]


def of_openai(server: SSEServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def of_anthropic(server: SSEServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_openai_runs_tools_of_a_chat(is_streamed: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "?"}]
    with SSEServer(chat_completions("It is sunny.", tool_calls=WEATHER)) as server, of_openai(server) as client:

        def ask() -> Any:
            if not is_streamed:
                return client.chat.completions.create(model="any", messages=messages).choices[0]
            with client.chat.completions.stream(model="any", messages=messages) as stream:
                return stream.get_final_completion().choices[0]

        choice = ask()
        assert choice.finish_reason == "tool_calls"
        calls = choice.message.tool_calls
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            ("weather", '{"city": "Oslo"}'),
            ("clock", "{}"),
        ]
        messages.append({"role": "tool", "tool_call_id": calls[0].id, "content": "sun"})
        choice = ask()
        assert (choice.finish_reason, choice.message.content) == ("stop", "It is sunny.")


@pytest.mark.slow
@pytest.mark.parametrize("is_streamed", [True, False])
def test_openai_runs_tools_of_a_response(is_streamed: bool) -> None:
    items: list[Any] = [{"role": "user", "content": "?"}]
    with SSEServer(openai_responses("It is sunny.", tool_calls=WEATHER)) as server, of_openai(server) as client:

        def ask() -> Any:
            if not is_streamed:
                return client.responses.create(model="any", input=items)
            with client.responses.stream(model="any", input=items) as stream:
                return stream.get_final_response()

        response = ask()
        assert [(call.type, call.name, call.arguments) for call in response.output] == [
            ("function_call", "weather", '{"city": "Oslo"}'),
            ("function_call", "clock", "{}"),
        ]
        items.append({"type": "function_call_output", "call_id": response.output[0].call_id, "output": "sun"})
        response = ask()
        assert (response.status, response.output_text, response.usage.output_tokens) == ("completed", "It is sunny.", 3)


def test_response_is_streamed_word_by_word_with_numbered_events() -> None:
    with SSEServer(openai_responses()) as server, of_openai(server) as client:
        events = list(client.responses.create(model="any", input="Say it again", stream=True))
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["Say ", "it ", "again"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]


@pytest.mark.parametrize("is_streamed", [True, False])
def test_anthropic_runs_tools(is_streamed: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "?"}]
    with SSEServer(anthropic_messages("It is sunny.", tool_calls=WEATHER)) as server, of_anthropic(server) as client:

        def ask() -> Any:
            if not is_streamed:
                return client.messages.create(model="any", max_tokens=9, messages=messages)
            with client.messages.stream(model="any", max_tokens=9, messages=messages) as stream:
                return stream.get_final_message()

        message = ask()
        assert message.stop_reason == "tool_use"
        assert [(block.name, block.input) for block in message.content] == WEATHER
        result = {"type": "tool_result", "tool_use_id": message.content[0].id, "content": "sun"}
        messages.append({"role": "user", "content": [result]})
        message = ask()
        assert (message.stop_reason, message.content[0].text) == ("end_turn", "It is sunny.")
        assert message.usage.output_tokens == 3


def test_anthropic_reads_the_echo_word_by_word() -> None:
    with SSEServer(anthropic_messages()) as server, of_anthropic(server) as client:
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": "Say it again"}]}]
        with client.messages.stream(model="any", max_tokens=9, messages=messages) as stream:
            assert list(stream.text_stream) == ["Say ", "it ", "again"]


@pytest.mark.parametrize(("build", "dialect"), [(openai_responses, "openai"), (anthropic_messages, "anthropic")])
def test_dialect_ends_at_the_last_event(build: Any, dialect: Any) -> None:
    data = {"input": "a", "messages": [], "stream": True}
    with SSEServer(build("a")) as server:
        _, _, events = request_sse(server.url, None, data, dialect=dialect, require_done=True)
        assert events.collect()
        assert events.outcome == "done"


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize(("tool_calls", "tokens"), [((), ["one ", "two "]), (WEATHER, [])])
def test_stall_comes_after_some_tokens_or_calls(
    build: Any, tool_calls: Any, tokens: list[str], clock: FakeClock
) -> None:
    data = {"messages": [], "input": [], "stream": True}
    with SSEServer(build("one two three", tool_calls=tool_calls, stall_after=2)) as server:
        _, _, events = request_sse(server.url, None, data, dialect="events", timeout={"idle": 30, "read": None})
        seen: list[str] = []

        def read() -> None:
            # One by one, as they come.
            seen.extend(map(str, events))

        def was_sent(text: str) -> bool:
            return any(text in event for event in seen)

        reading = in_thread(read)
        until(lambda: all(was_sent(repr(token)) for token in tokens) and was_sent("Oslo") == bool(tool_calls))
        clock.advance_until(reading.done)
        with pytest.raises(StreamTimeoutError, match="idle"):
            reading.result(30)
        assert not was_sent(repr("three"))
        assert server.wait_for_request().wait_aborted()


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDERS)
def test_stall_may_come_before_the_end_or_replace_it(build: Any) -> None:
    for count, data in ((1, {"stream": True}), (0, {"stream": False})):
        with SSEServer(build("one", stall_after=count)) as server:
            cancel = threading.Event()
            body = {"messages": [], "input": [], **data}
            if data["stream"]:
                _, _, events = request_sse(server.url, None, body, dialect="events", cancel=cancel)
                while "one" not in str(next(events)):
                    pass
                events.close()
            else:
                with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
                    client.post(server.url, json=body, timeout=httpx.Timeout(30, read=0.1))
            server.wait_for_request().wait_aborted()


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("stall_after", [-1, 1.0, True, "1"])
def test_stall_after_something_that_is_no_number_is_refused(build: Any, stall_after: Any) -> None:
    with pytest.raises(UsageError, match="`stall_after` must be a number of tokens"):
        build(stall_after=stall_after)


@pytest.mark.slow
def test_sdks_read_the_refusals() -> None:
    error: type[Exception] = openai.BadRequestError
    with SSEServer(openai_responses()) as server, pytest.raises(error, match="POST a JSON object with an input"):
        of_openai(server).models.list()
    error = anthropic.BadRequestError
    with SSEServer(anthropic_messages()) as server, pytest.raises(error, match="POST a JSON object with a list"):
        of_anthropic(server).models.list()


# Steps for the tests of applications.


def test_refusal_with_json_is_one_step() -> None:
    with SSEServer([respond(401, {"WWW-Authenticate": "Bearer"}, json={"error": "no key"}), send("late")]) as server:
        response = httpx.get(server.url)
        assert (response.status_code, response.json()) == (401, {"error": "no key"})
        assert response.headers["content-type"] == "application/json"
        assert response.headers["www-authenticate"] == "Bearer"
        assert httpx.head(server.url).headers["content-length"] == response.headers["content-length"]


@pytest.mark.parametrize("arguments", [{"framing": "close"}, {"length": 3}])
def test_json_has_its_own_framing(arguments: Any) -> None:
    with pytest.raises(UsageError, match="`json` must come without `framing` and `length`"):
        respond(401, json={}, **arguments)


def test_json_may_have_another_content_type_and_be_null() -> None:
    with SSEServer([respond(400, json=None, content_type="application/problem+json")]) as server:
        response = httpx.get(server.url)
        assert (response.text, response.headers["content-type"]) == ("null", "application/problem+json")


def test_hold_without_a_flag_waits_for_the_server() -> None:
    with SSEServer([send(1), hold(), send(2)]) as server:
        streams = [request_sse(server.url).events for _ in range(3)]
        assert [next(stream) for stream in streams] == [1, 1, 1]
        assert [stream.poll() for stream in streams] == [[], [], []]
        server.release()
        assert [stream.collect() for stream in streams] == [[2], [2], [2]]
        # A later request is not held.
        assert request_sse(server.url).events.collect() == [1, 2]
