"""Decoding events to items: every mode and every error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sseqbridge import _accelerators
from sseqbridge._exceptions import CallbackError, DecodeError, UpstreamError, UsageError
from sseqbridge._sse.dialects import DEFAULT_DONE, Dialect, Done, event_rules
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge._streams.decoding import Decode, Decoder, ErrorEvents

pytestmark = pytest.mark.configurations("default", "plain")

# More nesting than json.loads takes, and an integer with more digits than int() does.
TOO_DEEP = "[" * 100_000
TOO_LONG = "9" * 5000


@pytest.fixture(params=["fast", "plain"], autouse=True)
def loads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON decoder of this process, and in a second run of the test that of the standard library."""
    if request.param == "plain":
        monkeypatch.setattr(_accelerators, "json_decode", lambda: json.loads)


def decoder(decode: Decode = "json", done: Done = "[DONE]", error_events: ErrorEvents = "raise") -> Decoder:
    return Decoder(decode, done, error_events)


def refuse(event: ServerSentEvent) -> Any:
    raise KeyError(event.data)


# --- json ---


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "", "text", [], {}, {"a": [{"b": None}]}, 2**70])
def test_json_decodes_the_data_of_an_event(value: object) -> None:
    assert decoder().item(ServerSentEvent(data=json.dumps(value))) == value


@pytest.mark.parametrize(
    "data", ["", "[DONE]", "{", "secret", '{"secret": 1} secret', TOO_LONG, TOO_DEEP], ids=lambda data: data[:22]
)
@pytest.mark.parametrize("error_events", ["raise", "yield"])
def test_invalid_json_raises_decode_error_with_event_and_cause(data: str, error_events: ErrorEvents) -> None:
    event = ServerSentEvent("tick", data, "7")
    with pytest.raises(DecodeError) as raised:
        decoder(error_events=error_events).item(event)
    assert raised.value.event is event
    assert isinstance(raised.value.__cause__, (ValueError, RecursionError))
    message = str(raised.value)
    assert message.startswith('the data of a "tick" event is not JSON (')
    assert 'decode="text"' in message
    assert "secret" not in message
    assert "99" not in message


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ('{"a": oops}', "Expecting value at character 6"),
        ('{"a": "\x00"}', "Invalid control character at character 7"),
        ('{"a": "b', "Unterminated string starting at character 6"),
    ],
)
def test_decode_error_has_the_position_of_the_fault(data: str, fault: str) -> None:
    with pytest.raises(DecodeError, match=rf"\({fault}\)"):
        decoder().item(ServerSentEvent(data=data))


def test_json_that_only_the_standard_library_accepts_is_decoded() -> None:
    decoded = decoder().item(ServerSentEvent(data='[1e400, -Infinity, "\\ud800", {"a": NaN}]'))
    assert decoded[:3] == [float("inf"), float("-inf"), "\ud800"]
    assert decoded[3]["a"] != decoded[3]["a"]


def test_text_and_event_modes_need_no_json_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_accelerators, "json_decode")
    assert decoder("text").item(ServerSentEvent(data="1")) == "1"


def test_fault_without_a_position_is_reported_by_type() -> None:
    with pytest.raises(DecodeError, match=r"\(ValueError\)"):
        decoder().item(ServerSentEvent(data=TOO_LONG))
    with pytest.raises(DecodeError, match=r"\(RecursionError\)"):
        decoder().item(ServerSentEvent(data=TOO_DEEP))


# --- errors that come as events ---

BUSY = {"message": "busy", "code": 7}
JSONRPC_ERROR = {"jsonrpc": "2.0", "id": 1, "error": BUSY}


@pytest.mark.parametrize(
    ("event", "payload", "quoted"),
    [
        (ServerSentEvent(data='{"error": "busy"}'), {"error": "busy"}, "busy"),
        (ServerSentEvent(data=json.dumps({"error": BUSY})), {"error": BUSY}, "busy"),
        (ServerSentEvent("error", json.dumps({"error": BUSY})), {"error": BUSY}, "busy"),
        (ServerSentEvent("error", json.dumps(JSONRPC_ERROR)), JSONRPC_ERROR, "busy"),
        (ServerSentEvent("error", json.dumps(BUSY)), BUSY, "busy"),
        (ServerSentEvent("error", '"busy"'), "busy", "busy"),
        (ServerSentEvent("error", "busy, not JSON"), "busy, not JSON", "busy, not JSON"),
        (ServerSentEvent("error", TOO_DEEP), TOO_DEEP, TOO_DEEP[:200]),
        (ServerSentEvent(data=json.dumps({"error": "x" * 1000})), {"error": "x" * 1000}, "x" * 200),
        (ServerSentEvent(data='{"error": {"code": 7}}'), {"error": {"code": 7}}, None),
        (ServerSentEvent(data='{"error": {"message": ["busy"]}}'), {"error": {"message": ["busy"]}}, "busy"),
        (ServerSentEvent(data='{"error": {"message": {"code": 7}}}'), {"error": {"message": {"code": 7}}}, None),
        (ServerSentEvent(data='{"error": {"error": {"msg": "busy"}}}'), {"error": {"error": {"msg": "busy"}}}, "busy"),
        (ServerSentEvent("error", '{"error": {}}'), {"error": {}}, None),
        (ServerSentEvent("error", '{"detail": [{"msg": "busy"}]}'), {"detail": [{"msg": "busy"}]}, "busy"),
        (ServerSentEvent("error", '{"error": 7}'), {"error": 7}, None),
        (ServerSentEvent("error", "7"), 7, None),
        (ServerSentEvent("error", "null"), None, None),
        (ServerSentEvent("error", "[]"), [], None),
        (ServerSentEvent("error", ""), "", None),
    ],
)
def test_error_of_the_upstream_is_raised_with_its_payload(
    event: ServerSentEvent, payload: object, quoted: str | None
) -> None:
    with pytest.raises(UpstreamError) as raised:
        decoder().item(event)
    assert raised.value.event is event
    assert raised.value.payload == payload
    assert raised.value.__cause__ is None
    detail = "; it is in .payload" if quoted is None else f": {quoted}"
    assert str(raised.value) == f"the upstream sent an error{detail}"


@pytest.mark.parametrize(
    "value",
    [
        {"error": None},
        {"error": False},
        {"error": ""},
        {"error": " "},
        {"error": {}},
        {"error": {"message": None, "code": 0}},
        {"error": []},
        {"error": 7},
        {"error": ["busy"]},
        {"errors": "busy"},
        {"nested": {"error": "busy"}},
        [{"error": "busy"}],
        ["error"],
        "error",
        {},
        JSONRPC_ERROR,
    ],
)
def test_value_that_resembles_an_error_is_an_item(value: object) -> None:
    assert decoder().item(ServerSentEvent(data=json.dumps(value))) == value


@pytest.mark.parametrize("name", ["message", "error"])
def test_error_events_yield_returns_the_error(name: str) -> None:
    event = ServerSentEvent(name, '{"error": "busy"}')
    assert decoder(error_events="yield").item(event) == {"error": "busy"}


def test_yielded_error_event_that_is_not_json_is_text() -> None:
    assert decoder(error_events="yield").item(ServerSentEvent("error", "busy, not JSON")) == "busy, not JSON"


def test_message_of_the_upstream_cannot_forge_a_log_line() -> None:
    with pytest.raises(UpstreamError) as caught:
        decoder().item(ServerSentEvent("error", "busy\n2026-01-01 all is well\x1b[2J"))
    assert str(caught.value) == "the upstream sent an error: busy 2026-01-01 all is well [2J"


def test_type_of_an_event_cannot_forge_a_log_line() -> None:
    modes: list[Decode] = ["json", refuse]
    for decode in modes:
        with pytest.raises(DecodeError) as caught:
            decoder(decode).item(ServerSentEvent("tick\x1b[2J", "{"))
        assert '"tick [2J" event' in str(caught.value)


def test_dialect_names_further_types_of_errors() -> None:
    rules = event_rules(Dialect(error_events=("failure",)), None, is_json=True)
    failing = Decoder("json", None, "raise", rules)
    for name, data, payload in (("failure", '{"a": 1}', {"a": 1}), ("failure", "busy", "busy"), ("error", "[]", [])):
        with pytest.raises(UpstreamError) as raised:
            failing.item(ServerSentEvent(name, data))
        assert raised.value.payload == payload
    yielding = Decoder("json", None, "yield", rules)
    assert yielding.item(ServerSentEvent("failure", "busy")) == "busy"


@pytest.mark.parametrize("data", ["busy", '{"error": "busy"}'])
def test_other_modes_ignore_error_events(data: str) -> None:
    event = ServerSentEvent("error", data)
    assert decoder("text").item(event) == data
    assert decoder("event").item(event) is event


# --- the other modes ---


def test_text_mode_returns_the_data() -> None:
    assert decoder("text").item(ServerSentEvent(data=" {not json}\n")) == " {not json}\n"


@pytest.mark.parametrize("item", [ServerSentEvent("tick", "1"), Comment("ping")], ids=repr)
def test_event_mode_returns_the_event(item: ServerSentEvent | Comment) -> None:
    assert decoder("event").item(item) is item


def test_decode_function_is_called_with_the_event() -> None:
    assert decoder(lambda event: (event.event, event.data)).item(ServerSentEvent("tick", "1")) == ("tick", "1")


def test_failing_decode_function_raises_decode_error_with_event_and_cause() -> None:
    event = ServerSentEvent("tick", "secret")
    with pytest.raises(DecodeError) as raised:
        decoder(refuse).item(event)
    assert raised.value.event is event
    assert isinstance(raised.value.__cause__, KeyError)
    assert str(raised.value) == (
        'the decode function raised KeyError for a "tick" event. '
        "Its argument is a ServerSentEvent, whose text is event.data."
    )


def test_interrupt_in_a_decode_function_is_not_wrapped() -> None:
    def interrupted(event: ServerSentEvent) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoder(interrupted).item(ServerSentEvent())


# --- the last event ---


@pytest.mark.parametrize("done", ["[DONE]", None])
def test_is_last_is_false_without_a_done_function(done: Done) -> None:
    assert not decoder(done=done).has_done_function
    assert decoder(done=done).is_last(ServerSentEvent(data="[DONE]")) is False


def test_done_function_recognizes_the_last_event() -> None:
    last = decoder(done=lambda event: event.event == "end")
    assert last.has_done_function
    assert last.is_last(ServerSentEvent("tick")) is False
    assert last.is_last(ServerSentEvent("end")) is True


def test_truth_value_of_the_done_function_counts() -> None:
    def any_data(event: ServerSentEvent) -> Any:
        return event.data

    assert decoder(done=any_data).is_last(ServerSentEvent(data="x")) is True
    assert decoder(done=any_data).is_last(ServerSentEvent(data="")) is False


def test_comment_is_never_the_last() -> None:
    assert decoder("event", done=refuse).is_last(Comment("end")) is False


def test_failing_done_function_raises_callback_error_with_cause() -> None:
    with pytest.raises(CallbackError) as raised:
        decoder(done=refuse).is_last(ServerSentEvent(data="secret"))
    assert isinstance(raised.value.__cause__, KeyError)
    assert str(raised.value) == "the done function raised KeyError"


RESPONSES: list[Any] = [
    {"jsonrpc": "2.0", "id": 1, "result": {}},
    # In a batch.
    [{"jsonrpc": "2.0", "id": 1, "result": {}}],
    {"jsonrpc": "2.0", "id": 1, "error": {"code": -32600}},
    {"jsonrpc": "2.0", "id": None, "error": {"code": -32700}},
]
NO_RESPONSES: list[Any] = [
    {"jsonrpc": "2.0", "id": 1, "method": "sampling/createMessage", "params": {"result": 1}},
    {"jsonrpc": "2.0", "method": "notifications/progress"},
    {"id": 1, "result": {}},
    [{"jsonrpc": "2.0", "method": "notifications/progress"}],
    [],
    "result",
]


@pytest.mark.parametrize("decode", ["json", "text", "event"])
def test_json_rpc_response_is_the_last_event_of_a_request(decode: Decode) -> None:
    rules = event_rules("mcp", DEFAULT_DONE, is_json=decode == "json", is_request=True)
    decoding = Decoder(decode, DEFAULT_DONE, "raise", rules)
    assert decoding.has_done_function
    for values, is_last in ((RESPONSES, True), (NO_RESPONSES, False)):
        for value in values:
            event = ServerSentEvent(data=json.dumps(value))
            assert decoding.is_last(event) is is_last
            assert decoding.is_last(event, decoding.item(event)) is is_last
    assert decoding.is_last(ServerSentEvent(data="no JSON")) is False


# --- the body of an error response ---


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"error": "busy"}', {"error": "busy"}),
        (b"null", None),
        (b"<html>", "<html>"),
        (b"", ""),
        (b"caf\xc3\xa9 \xff", "caf\u00e9 \ufffd"),
        (TOO_LONG.encode(), TOO_LONG),
        (TOO_DEEP.encode(), TOO_DEEP),
    ],
    ids=range(7),
)
def test_body_is_json_or_text(body: bytes, value: object) -> None:
    assert decoder().body(body) == value


def test_body_is_an_item_only_in_json_mode() -> None:
    assert decoder("json").gives_body
    assert not decoder("text").gives_body
    assert not decoder("event").gives_body
    assert not decoder(refuse).gives_body


# --- wrong arguments ---


@pytest.mark.parametrize("decode", ["JSON", "", None, 7, ["json"], b"json"])
def test_unknown_decode_raises_usage_error(decode: Any) -> None:
    with pytest.raises(UsageError, match=r'`decode` must be "json", "text", "event" or a function of the event, got'):
        decoder(decode)


@pytest.mark.parametrize("done", [7, True, b"[DONE]", ["[DONE]"]])
def test_unknown_done_raises_usage_error(done: Any) -> None:
    with pytest.raises(UsageError, match=r"`done` must be a str, a function of the event, or None, got"):
        decoder(done=done)


@pytest.mark.parametrize("error_events", ["ignore", None, True, ["raise"]])
def test_unknown_error_events_raises_usage_error(error_events: Any) -> None:
    with pytest.raises(UsageError, match=r'`error_events` must be "raise" or "yield", got'):
        decoder(error_events=error_events)
