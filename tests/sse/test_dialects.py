"""Dialects as data, and the rules that they make for the events of a stream."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sseqbridge import Comment, Dialect, ServerSentEvent, UsageError
from sseqbridge._sse.dialects import DEFAULT_DONE, EventRules, dialect_of, event_rules

GRADIO = Dialect(end_data='{"msg":"close_stream"}', heartbeat_data=('{"msg":"heartbeat"}',))


def rules(dialect: Any = "openai", *, is_json: bool = True) -> EventRules:
    return event_rules(dialect, DEFAULT_DONE, is_json=is_json)


def is_plain(checked: EventRules, *events: ServerSentEvent) -> bool:
    have_types = any(event.event != "message" for event in events)
    return checked.count_plain(list(events), have_types=have_types) == len(events)


# --- The data class ---


def test_dialect_is_frozen_comparable_data() -> None:
    dialect = Dialect(end_events=["bye"], heartbeat_events={"ping"})
    assert dialect == Dialect("[DONE]", ("bye",), ("ping",), (), ())
    assert len({dialect, Dialect(end_events=("bye",), heartbeat_events=("ping",))}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        dialect.end_data = None  # type: ignore[misc]
    assert dataclasses.replace(dialect, end_data=None).end_events == ("bye",)


@pytest.mark.parametrize("name", ["end_events", "heartbeat_events", "heartbeat_data", "error_events"])
@pytest.mark.parametrize("value", ["ping", b"ping", None, [1], [b"ping"], 7])
def test_wrong_collection_is_a_usage_error(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"`{name}` must be a collection of str, such as \(\"ping\",\), got"):
        Dialect(**{name: value})


@pytest.mark.parametrize("value", [b"[DONE]", 7, ["[DONE]"]])
def test_wrong_end_data_is_a_usage_error(value: Any) -> None:
    with pytest.raises(UsageError, match="`end_data` must be a str or None, got"):
        Dialect(end_data=value)


@pytest.mark.parametrize(
    "contradiction",
    [
        {"heartbeat_events": ["bye"], "end_events": ["bye"]},
        {"heartbeat_events": ["failure"], "error_events": ["failure"]},
        {"heartbeat_events": ["error"]},
    ],
    ids=repr,
)
def test_heartbeat_that_is_an_end_or_error_is_refused(contradiction: Any) -> None:
    with pytest.raises(UsageError, match="`heartbeat_events` must not name a type that ends the stream"):
        Dialect(**contradiction)


def test_dialects_have_names() -> None:
    assert dialect_of("openai").end_events == ("response.completed", "response.failed", "response.incomplete")
    assert dialect_of("openai").end_data == dialect_of("anthropic").end_data == "[DONE]"
    assert (dialect_of("anthropic").end_events, dialect_of("anthropic").error_events) == (("message_stop",), ("error",))
    assert dialect_of("mcp").end_data is None
    assert dialect_of("events") == Dialect(end_data=None)
    assert dialect_of(GRADIO) is GRADIO


@pytest.mark.parametrize("value", ["OpenAI", "", None, 7, ("openai",), Dialect])
def test_unknown_dialect_is_a_usage_error(value: Any) -> None:
    with pytest.raises(UsageError, match=r'must be "openai", "anthropic", "mcp", "events" or a sseqbridge\.D'):
        dialect_of(value)


# --- Ends ---


@pytest.mark.parametrize("data", ["[DONE]", "[DONE] ", "\t[DONE]", " [DONE]\r\n"])
def test_blanks_around_the_end_data_count_outside_json_mode(data: str) -> None:
    event = ServerSentEvent("m", data)
    assert rules().is_end(event)
    assert not is_plain(rules(), event)
    is_exact = data == "[DONE]"
    assert rules(is_json=False).is_end(event) is is_exact
    assert is_plain(rules(is_json=False), event) is not is_exact


@pytest.mark.parametrize("data", ["[DONE", "[DONE].", '"[DONE]"', "[]", "DONE"])
def test_other_data_is_no_end(data: str) -> None:
    assert not rules().is_end(ServerSentEvent(data=data))


@pytest.mark.parametrize(
    ("dialect", "name"),
    [("openai", "response.failed"), ("anthropic", "message_stop"), (Dialect(end_events=("bye",)), "bye")],
)
def test_type_of_an_event_ends_the_stream(dialect: Any, name: str) -> None:
    event = ServerSentEvent(name, '{"a": 1}')
    for is_json in (True, False):
        assert rules(dialect, is_json=is_json).is_end(event)
        assert not is_plain(rules(dialect, is_json=is_json), event)
        assert not rules("events", is_json=is_json).is_end(event)


@pytest.mark.parametrize(
    ("data", "is_item"),
    [
        *[('{"a": 1}', True), ("[]", True), ('"bye"', True), ("0", True), ("false", True), ("{", True)],
        *[("", False), (" ", False), ("null", False), ("bye", False), ("[DONE]", False), ("1" * 5000, False)],
    ],
)
def test_end_event_without_a_value_is_no_item(data: str, is_item: bool) -> None:
    dialect = Dialect(end_events=("bye",))
    assert rules(dialect).is_last_item(ServerSentEvent("bye", data)) is is_item
    assert rules(dialect, is_json=False).is_last_item(ServerSentEvent("bye", data)) is (data != "[DONE]")


@pytest.mark.parametrize("done", ["[DONE]", "END", None, lambda event: True])
def test_done_overrides_all_ends_of_a_dialect(done: Any) -> None:
    overridden = event_rules("openai", done, is_json=True, is_request=True)
    assert not overridden.is_end(ServerSentEvent("response.completed", "{}"))
    assert overridden.is_end(ServerSentEvent(data="[DONE]")) is (done == "[DONE]")
    assert overridden.is_end(ServerSentEvent(data=" END")) is (done == "END")
    assert overridden.asks_consumer is callable(done)
    assert overridden.has_end is (done is not None)
    assert overridden.is_heartbeat(ServerSentEvent("ping", "{}"))
    assert not event_rules("mcp", done, is_json=True, is_request=True).ends_at_response


def test_response_ends_the_stream_of_a_request() -> None:
    of_request = event_rules("mcp", DEFAULT_DONE, is_json=True, is_request=True)
    assert (of_request.ends_at_response, of_request.asks_consumer, of_request.has_end) == (True, True, True)
    other = event_rules("mcp", DEFAULT_DONE, is_json=True, is_request=False)
    assert (other.ends_at_response, other.asks_consumer, other.has_end) == (False, False, False)


@pytest.mark.parametrize("done", [7, True, b"[DONE]", ["[DONE]"]])
def test_unknown_done_is_a_usage_error(done: Any) -> None:
    with pytest.raises(UsageError, match="`done` must be a str, a function of the event, or None, got"):
        event_rules("openai", done, is_json=True)


# --- Heartbeats ---


@pytest.mark.parametrize("data", ["", " ", "\t \n", ":", ": keepalive", " : ping"])
def test_data_without_a_value_is_a_heartbeat_in_json_mode(data: str) -> None:
    event = ServerSentEvent(data=data)
    for dialect in ("openai", "anthropic", "mcp", "events", GRADIO):
        assert rules(dialect).is_heartbeat(event)
        assert not is_plain(rules(dialect), event)
        assert not rules(dialect).is_heartbeat(ServerSentEvent("error", data)), "an error without a text"
    assert not rules("events", is_json=False).is_heartbeat(event)


@pytest.mark.parametrize("data", ["0", '""', "{}", "[ ]", "null", "keepalive"])
def test_other_data_is_no_heartbeat(data: str) -> None:
    for dialect in ("openai", "anthropic", "mcp", "events"):
        assert not rules(dialect).is_heartbeat(ServerSentEvent("tick", data))


@pytest.mark.parametrize(
    ("dialect", "event"),
    [
        *[(name, ServerSentEvent("ping", "now")) for name in ("openai", "anthropic", "mcp")],
        ("openai", ServerSentEvent("heartbeat", "{}")),
        ("openai", ServerSentEvent("keep-alive", "1")),
        ("anthropic", ServerSentEvent(data=": keepalive")),
        ("mcp", ServerSentEvent(data="")),
        (GRADIO, ServerSentEvent(data='{"msg":"heartbeat"}')),
        (Dialect(heartbeat_data=["ping", "\U0001f493"]), ServerSentEvent(data="\U0001f493")),
    ],
)
def test_dialect_names_heartbeats(dialect: Any, event: ServerSentEvent) -> None:
    for is_json in (True, False):
        checked = rules(dialect, is_json=is_json)
        assert checked.is_heartbeat(event)
        assert not checked.counts(event)
        assert not is_plain(checked, event)
        assert checked.count([event, ServerSentEvent(data='"an item"')]) == 1


def test_events_dialect_has_no_heartbeats_but_comments() -> None:
    checked = rules("events")
    event = ServerSentEvent("ping", '{"n": 1}')
    assert not checked.is_heartbeat(event)
    assert checked.counts(event)
    assert is_plain(checked, event)
    assert checked.count([event]) == 1
    assert not checked.counts(Comment("ping"))


@pytest.mark.parametrize("is_json", [True, False])
def test_quick_look_agrees_with_the_rules(is_json: bool) -> None:
    texts = ["", " ", "{}", "[1]", "1", '"a"', "null", ": x", " {}", "~", "[DONE]", "[DONE] ", '{"msg":"heartbeat"}']
    names = ["message", "ping", "error", "response.completed", "tick"]
    for dialect in ("openai", "anthropic", "mcp", "events", GRADIO, Dialect(end_data="~"), Dialect(end_data="")):
        checked = rules(dialect, is_json=is_json)
        for event in (ServerSentEvent(name, text) for name in names for text in texts):
            if checked.is_end(event) or checked.is_heartbeat(event):
                assert not is_plain(checked, ServerSentEvent(data='{"n": 1}'), event)


# --- Errors ---


def test_error_types_are_those_of_the_dialect_and_error() -> None:
    assert rules("events").error_types == {"error"}
    assert rules(Dialect(error_events=("failure",))).error_types == {"error", "failure"}


@pytest.mark.parametrize("is_json", [True, False])
def test_end_marker_behind_plain_events_is_found_at_once(is_json: bool) -> None:
    checked = event_rules("openai", DEFAULT_DONE, is_json=is_json)

    def count(*texts: str) -> int:
        return checked.count_plain([ServerSentEvent(data=text) for text in texts], have_types=False)

    assert count("{}", "1", "[DONE]") == 2
    assert count("[DONE]") == count() == 0
    assert count("[1]", "{}") == (-1 if is_json else 2)
    assert count("[DONE]", "{}") == count("{}", "[DONE]", "[DONE]") == count(": keepalive", "[DONE]") == -1
    assert count("{}", " [DONE]") == (1 if is_json else 2)
