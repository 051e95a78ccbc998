"""The error tree: it matches its module's docstring, can be pickled, and its messages give advice."""

from __future__ import annotations

import copy
import json
import pickle
import re
from typing import Any

import httpx
import pytest

from sseqbridge import Timeout, _exceptions
from sseqbridge._exceptions import (
    BufferLimitError,
    ContentTypeError,
    DecodeError,
    EventError,
    ReconnectionError,
    RedirectError,
    ResponseError,
    SSEError,
    StatusError,
    StreamTimeoutError,
    UpstreamError,
    UsageError,
    copy_error,
)
from sseqbridge._sse.events import ServerSentEvent
from sseqbridge.testing import SSEServer, raw, respond, silence
from tests.requesters import Requester

pytestmark = pytest.mark.configurations("default")

HEADERS = httpx.Headers([("content-type", "text/plain"), ("set-cookie", "a=1"), ("set-cookie", "b=2")])
EVENT = ServerSentEvent("error", "secret", "7", 1.0)

# Every error with attributes of its own.
WITH_ATTRIBUTES: list[Exception] = [
    StreamTimeoutError("read", 1.5),
    StreamTimeoutError("total", None),
    ReconnectionError("lost", 3),
    RedirectError("a redirect", 302),
    ResponseError("a response", 200, HEADERS, b"body"),
    StatusError("a status", 503, HEADERS, b"body"),
    ContentTypeError("a type", 200, HEADERS, b"body"),
    BufferLimitError(1024),
    EventError("an event", EVENT),
    DecodeError("no JSON", EVENT),
    UpstreamError("an error", EVENT, {"error": {"message": "busy"}}),
]
WITH_A_MESSAGE: list[Exception] = [
    getattr(_exceptions, name)("what happened")
    for name in _exceptions.__all__
    if getattr(_exceptions, name) not in {type(error) for error in WITH_ATTRIBUTES}
]


def documented_tree() -> dict[str, str]:
    """Return the tree in the module's docstring: each class with its base."""
    above: list[str] = []
    tree = {}
    for indent, name, note in re.findall(r"^ {4}((?:\|  )*(?:\+- )?)(\w+)(.*)$", _exceptions.__doc__ or "", re.M):
        depth = len(indent) // 3
        above[depth:] = [name]
        in_brackets = re.match(r" \(an? (\w+)\)", note)
        tree[name] = above[depth - 1] if depth else in_brackets[1] if in_brackets else "Exception"
    return tree


def test_class_tree_matches_the_docstring() -> None:
    classes = {name: getattr(_exceptions, name).__bases__ for name in _exceptions.__all__}
    assert {name: (parent,) for name, parent in documented_tree().items()} == {
        name: tuple(base.__name__ for base in bases) for name, bases in classes.items()
    }


def test_every_class_is_exported() -> None:
    classes = [name for name, value in vars(_exceptions).items() if str(value).startswith("<class 'sseqbridge.")]
    assert sorted(classes) == _exceptions.__all__


def test_usage_error_is_not_an_sse_error() -> None:
    assert not issubclass(UsageError, SSEError)
    assert issubclass(UsageError, RuntimeError)


@pytest.mark.slow
@pytest.mark.parametrize("error", WITH_ATTRIBUTES + WITH_A_MESSAGE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_error_survives_pickling(error: Exception, protocol: int) -> None:
    # Protocols 0 and 1 do not support slots, so no events.
    if protocol < 2 and isinstance(error, EventError):
        protocol = 2
    assert_same(pickle.loads(pickle.dumps(error, protocol)), error)


@pytest.mark.parametrize("error", WITH_ATTRIBUTES + WITH_A_MESSAGE, ids=lambda error: type(error).__name__)
def test_error_survives_copying(error: Exception) -> None:
    assert_same(copy.copy(error), error)
    assert_same(copy.deepcopy(error), error)


def assert_same(other: Exception, error: Exception) -> None:
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)
    assert other.args == error.args


def test_error_that_cannot_be_copied_is_its_own_copy() -> None:
    class SingleError(SSEError):
        made = 0

        def __new__(cls, *args: object) -> SingleError:
            cls.made += 1
            if cls.made > 1:
                raise TypeError("there is one only")
            return super().__new__(cls, *args)

    error = SingleError("once")
    assert copy_error(error) is error


def test_attributes_hold_the_facts() -> None:
    timeout, _, lost, redirect, response, _, _, limit, event, _, upstream = WITH_ATTRIBUTES
    assert isinstance(timeout, StreamTimeoutError)
    assert (timeout.which, timeout.seconds) == ("read", 1.5)
    assert isinstance(lost, ReconnectionError)
    assert (str(lost), lost.attempts) == ("lost", 3)
    assert isinstance(redirect, RedirectError)
    assert redirect.status == 302
    assert isinstance(response, ResponseError)
    assert (response.status, response.headers, response.body) == (200, HEADERS, b"body")
    assert isinstance(limit, BufferLimitError)
    assert limit.limit == 1024
    assert isinstance(event, EventError)
    assert event.event is EVENT
    assert isinstance(upstream, UpstreamError)
    assert upstream.payload == {"error": {"message": "busy"}}


def test_text_of_a_response_is_utf8() -> None:
    assert StatusError("", 500, HEADERS, b"caf\xc3\xa9 \xff").text == "caf\u00e9 \ufffd"


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("connect", "no connection to the upstream after 1.5 s; timeout=Timeout(connect=...) sets this limit"),
        ("read", "not a byte from the upstream after 1.5 s; timeout=Timeout(read=...) sets this limit"),
        ("write", "the upstream took no more of the request after 1.5 s; timeout=Timeout(read=...) sets this limit"),
        (
            "idle",
            "no event from the upstream (comments do not count) after 1.5 s; timeout=Timeout(idle=...) sets this limit",
        ),
        ("total", "the stream is not at its end after 1.5 s; timeout=Timeout(total=...) sets this limit"),
    ],
)
def test_timeout_message_names_the_wait_and_its_option(which: str, message: str) -> None:
    assert str(StreamTimeoutError(which, 1.5)) == message


def test_timeout_message_without_a_known_limit() -> None:
    assert str(StreamTimeoutError("read", None)).startswith("not a byte from the upstream; ")


def test_timeout_message_names_the_target() -> None:
    error = StreamTimeoutError("read", 1.5, "http://host/path")
    assert str(error).startswith("http://host/path: not a byte from the upstream after 1.5 s; ")
    assert pickle.loads(pickle.dumps(error)).target == copy.copy(error).target == "http://host/path"


def test_timeout_message_of_json_lines_names_no_events() -> None:
    error = StreamTimeoutError("idle", 1.5, unit="document")
    for same in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert str(same).startswith("no document from the upstream (blank lines do not count) after 1.5 s; ")


def test_timeout_of_a_request_names_it_without_query_and_credentials(ask: Requester) -> None:
    with SSEServer([silence()]) as server:
        url = server.url.replace("http://", "http://user:secret@")
        with pytest.raises(StreamTimeoutError) as caught:
            ask(f"{url}/path?token=secret", timeout=Timeout(read=0.05))
    assert str(caught.value).startswith(f"{server.url}/path: not a byte from the upstream after 0.05 s; ")


def test_limit_error_names_the_option_to_raise() -> None:
    assert str(BufferLimitError(1024)) == "an event is larger than max_event_bytes=1024; raise it to read this stream"


@pytest.mark.parametrize("error", WITH_ATTRIBUTES, ids=lambda error: type(error).__name__)
def test_message_shows_no_header_body_or_data(error: Exception) -> None:
    assert not re.search(r"secret|set-cookie|a=1|body", str(error))


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("application/json", {"error": {"message": "no key \x1b[31m\nFAKE", "type": "x"}}, "no key  [31m FAKE"),
        ("application/json", {"error": "no key"}, "no key"),
        ("application/json", {"detail": "no key"}, "no key"),
        ("application/problem+json", {"title": "Forbidden", "detail": "no key"}, "no key"),
        ("application/json", {"message": "x" * 1000}, "x" * 200),
        ("application/json", {"error": {"code": 7}}, None),
        ("text/html", "<html>no key</html>", None),
        ("application/json", {"error": "x" * 100_000}, None),
    ],
    ids=range(8),
)
def test_status_error_quotes_the_providers_message(
    ask: Requester, content_type: str, body: Any, message: str | None
) -> None:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    steps = [respond(401, content_type=content_type), raw(content)]
    with SSEServer(steps) as server, ask(server.url, decode="text") as response:
        _, error = response.fail()
        detail = "; its body is in .body" if message is None else f": {message}"
        assert str(error) == f"{server.url}/ answered 401 Unauthorized{detail}"
        assert isinstance(error, StatusError)
        if isinstance(body, str):
            with pytest.raises(ValueError, match="Expecting value"):
                error.json()
        else:
            assert error.json() == body
