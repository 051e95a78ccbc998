"""Checked arguments that requests share: what is kept of them, and that none takes another one's place."""

from __future__ import annotations

import gc
import weakref
from dataclasses import fields
from typing import Any

import pytest

from sseqbridge import Dialect, ServerSentEvent, Timeout, UsageError
from sseqbridge._engine.memory import DEFAULT_MAX_BUFFERED_BYTES, limit_of, memory
from sseqbridge._http.request import RequestOptions
from sseqbridge._streams.arguments import PreparedRequest, prepare

pytestmark = pytest.mark.configurations("default")

URL = "http://127.0.0.1:9"


def prepared(headers: Any = None, data: Any = None, **options: Any) -> PreparedRequest:
    return prepare(URL, headers, data, options)


def test_requests_that_are_read_alike_share_a_decoder() -> None:
    assert prepared(decode="text").decoder is prepared(decode="text", headers={"A": "1"}, cookies={"a": "b"}).decoder


@pytest.mark.parametrize(
    "option",
    [{"decode": lambda event: event}, {"done": lambda event: True}, {"dialect": Dialect()}, {"timeout": {"read": 1}}],
    ids=["decode", "done", "dialect", "timeout"],
)
def test_objects_of_a_caller_are_not_kept(option: dict[str, Any]) -> None:
    assert prepared(**option).decoder is not prepared(**option).decoder


def test_function_of_a_caller_is_not_kept_alive() -> None:
    def decode(event: ServerSentEvent) -> str:
        return event.data

    reference = weakref.ref(decode)
    prepared(decode=decode)
    del decode
    gc.collect()
    assert reference() is None


def test_equal_values_of_another_type_are_checked_again() -> None:
    assert prepared(max_event_bytes=1).options.max_event_bytes == 1
    with pytest.raises(UsageError, match="max_event_bytes"):
        prepared(max_event_bytes=True)
    with pytest.raises(UsageError, match="max_event_bytes"):
        prepared(max_event_bytes=1.0)


def test_limit_of_a_caller_differs_from_an_equal_default() -> None:
    assert limit_of(prepared().options.max_buffered_bytes) is memory
    own = prepared(max_buffered_bytes=int(DEFAULT_MAX_BUFFERED_BYTES)).options.max_buffered_bytes
    assert limit_of(own) is not memory


def test_done_of_a_caller_differs_from_an_equal_default() -> None:
    options = {"dialect": "anthropic"}
    assert prepared(**options).options.rules.is_end(ServerSentEvent(event="message_stop"))
    assert not prepared(done="[DONE]", **options).options.rules.is_end(ServerSentEvent(event="message_stop"))


def test_kept_options_have_nothing_of_an_earlier_request() -> None:
    secrets = {"headers": {"Authorization": "secret"}, "auth": ("user", "secret"), "cookies": {"b": "secret"}}
    prepared(data={"a": 1}, timeout=Timeout(read=7), **secrets)
    options = prepared(json={"c": 3}, timeout=Timeout(read=7)).options
    assert options.send == {}
    assert [name for name, _ in options.headers] == ["Accept", "Cache-Control", "Accept-Encoding", "Content-Type"]
    assert options.build == {"params": None, "content": b'{"c":3}', "cookies": None, "files": None, "extensions": {}}


def test_every_option_of_a_request_has_a_value() -> None:
    assert vars(prepared().options).keys() == {field.name for field in fields(RequestOptions)}
