"""Call: checked when it is made, sent by each call."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from sseqbridge import Bridge, Call, ConnectError, RequestAbortedError, SSEClient, UsageError, cancel_on
from sseqbridge.testing import SSEServer, hold, send, silence
from tests.streams.async_support import Run
from tests.streams.client_support import ClientRequester
from tests.support import in_thread

pytestmark = pytest.mark.configurations("default", "plain")

DONE = send("[DONE]")


@pytest.fixture
def server() -> Iterator[SSEServer]:
    with SSEServer([send({"n": 1}), DONE]) as server:
        yield server


def test_call_is_sent_each_time(run: Run, server: SSEServer) -> None:
    call = SSEClient(server.url).call("/chat", {"X-A": "1"}, {"prompt": "Hi"})
    assert isinstance(call, Call)
    assert server.requests == []
    for _ in range(2):
        status, headers, events = call()
        assert (status, headers["content-type"], list(events)) == (200, "text/event-stream", [{"n": 1}])

    async def main() -> None:
        status, _, events = await call.asend()
        assert (status, [item async for item in events]) == (200, [{"n": 1}])

    run(main)
    assert [(request.path, request.json(), request.headers["x-a"]) for request in server.requests] == [
        ("/chat", {"prompt": "Hi"}, "1")
    ] * 3


def test_threads_send_one_call_at_the_same_time() -> None:
    go_on = threading.Event()
    with SSEServer([hold(go_on), send("1"), DONE]) as server:
        call = SSEClient(server.url, decode="text").call("/")
        waiting = [in_thread(call) for _ in range(4)]
        server.wait_for_request(4)
        go_on.set()
        assert [future.result(30).events.collect() for future in waiting] == [["1"]] * 4


def test_later_changes_of_the_body_have_no_effect(server: SSEServer) -> None:
    body, headers = {"n": [1]}, {"X-A": "1"}
    call = SSEClient(server.url).call("/", headers, body)
    body["n"].append(2)
    headers["X-A"] = "2"
    call().events.close()
    assert server.requests[0].json() == {"n": [1]}
    assert server.requests[0].headers["x-a"] == "1"


def test_later_changes_of_other_parts_have_no_effect(server: SSEServer) -> None:
    params: dict[str, Any] = {"q": ["a"]}
    cookies = {"c": "a"}
    calls = []
    for letter in "ab":
        params["q"][0] = cookies["c"] = letter
        calls.append(SSEClient(server.url).call("/", params=params, cookies=cookies))
    files = {"f": ("a", b"a")}
    calls.append(SSEClient(server.url).call("/", files=files))
    files["f"] = ("b", b"b")
    # No header can carry it.
    cookies["c"] = "\n"
    for call in calls:
        call().events.close()
    first, second, third = server.requests
    assert (first.path, first.headers["cookie"]) == ("/?q=a", "c=a")
    assert (second.path, second.headers["cookie"]) == ("/?q=b", "c=b")
    assert b'filename="a"' in third.body


def chunks() -> Iterator[bytes]:
    yield b"x"


async def achunks() -> AsyncIterator[bytes]:
    yield b"x"


@pytest.mark.parametrize(
    "options",
    [
        {"content": chunks()},
        {"content": achunks()},
        {"content": [b"x"]},
        {"content": io.BytesIO(b"x")},
        {"files": {"a": io.BytesIO(b"x")}},
        {"files": {"a": ("name", io.BytesIO(b"x"), "text/plain")}},
        {"files": [("a", b"x"), ("b", io.BytesIO(b"x"))]},
        {"files": iter([("a", b"x")])},
    ],
    ids=["iterator", "asynchronous iterator", "list", "file", "files", "named file", "list of files", "files, once"],
)
def test_body_that_can_be_read_once_is_a_usage_error(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"the body of a Call must be readable again.*Pass bytes, or send it once"):
        SSEClient("http://h").call("/", **options)
    if "files" in options:
        return
    with Bridge(client=httpx.AsyncClient) as bridge, pytest.raises(UsageError, match="must be readable again"):
        SSEClient("http://h", bridge=bridge).call("/", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"content": "ä"},
        {"content": bytearray(b"x")},
        {"files": {"a": b"x"}},
        {"files": {"a": ("name", "x")}},
        {"files": [("a", b"x"), ("a", (None, b"y", "text/plain"))]},
    ],
)
def test_body_in_memory_is_sent_each_time(server: SSEServer, options: dict[str, Any]) -> None:
    call = SSEClient(server.url).call("/", **options)
    for _ in range(2):
        assert call().events.collect() == [{"n": 1}]
    first, second = server.requests
    assert len(first.body) == len(second.body) > 0


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("http://h:x/secret", {}, "`url` must be a valid http:// or https:// URL"),
        ("http://xn--h/secret", {}, "`url` must be a valid http:// or https:// URL"),
        ("ftp://h/secret", {}, "`url` must be an http:// or https:// URL with a host"),
        ("/secret", {}, "`url` must be an http:// or https:// URL with a host"),
        ("http://h:70000", {}, "`url` must have a port from 0 to 65535"),
        ("http://h", {"params": 5}, "the HTTP client must be able to build a request"),
        ("http://h", {"files": 5}, "the HTTP client must be able to build a request"),
        ("http://h", {"cookies": {"a": "b\n"}}, "`headers`"),
        ("http://h", {"headers": {"Content-Length": "3"}, "content": b"xx"}, "`headers`: 'Content-Length' must be"),
        ("http://h", {"data": object()}, "`data` must be something that JSON can represent"),
        ("http://h", {"last_event_id": "\n"}, "`last_event_id` must not contain"),
    ],
)
def test_arguments_are_checked_when_the_call_is_made(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        SSEClient().call(url, **options)
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)


def test_relative_url_works_if_a_bridges_clients_have_base_urls(server: SSEServer) -> None:
    with Bridge(client=lambda: httpx.AsyncClient(base_url=server.url)) as bridge:
        assert SSEClient(bridge=bridge).call("/x")().events.collect() == [{"n": 1}]


def test_set_cancel_flag_is_checked_when_the_call_is_sent(run: Run, server: SSEServer) -> None:
    flag = threading.Event()
    flag.set()
    call = SSEClient(server.url).call("/", cancel=flag)
    with pytest.raises(RequestAbortedError, match="before the request was sent"):
        call()

    async def main() -> None:
        with pytest.raises(RequestAbortedError):
            await call.asend()

    run(main)
    assert server.requests == []
    flag.clear()
    call().events.close()
    assert len(server.requests) == 1


def test_scope_of_the_sender_cancels_a_call(server: SSEServer) -> None:
    flag = threading.Event()
    flag.set()
    call = SSEClient(server.url).call("/")
    with cancel_on(flag) as scope:
        SSEClient(server.url).call("/")
        call()
    assert scope.cancelled
    assert server.requests == []


def test_interrupted_call_leaves_no_request(send_with: ClientRequester) -> None:
    """Until the headers have arrived, the flag aborts the request and its connection."""
    flag = threading.Event()
    with SSEServer([hold(threading.Event())]) as server:

        def set_flag() -> None:
            server.wait_for_request()
            flag.set()

        setting = in_thread(set_flag)
        with pytest.raises(RequestAbortedError):
            send_with(SSEClient(server.url), "/", cancel=flag)
        setting.result(30)
        server.requests[0].wait_aborted()


def test_dropped_stream_of_a_call_is_aborted() -> None:
    with SSEServer([send("1"), silence()]) as server:
        call = SSEClient(server.url, decode="text").call("/")
        with pytest.warns(ResourceWarning, match="was dropped while it was open"):
            next(call().events)
        server.requests[0].wait_aborted()


def test_errors_of_the_network_are_raised_by_the_sending(closed_port: int) -> None:
    call = SSEClient(f"http://127.0.0.1:{closed_port}").call("/")
    for _ in range(2):
        with pytest.raises(ConnectError):
            call()


@pytest.mark.blocks_its_loop
def test_call_in_a_coroutine_warns_at_the_callers_line(run: Run, server: SSEServer) -> None:
    client = SSEClient(server.url)

    async def main() -> None:
        for is_call in (False, True):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                response = client.call("/")() if is_call else client.request("/")
                response.events.close()
            assert [warning.category for warning in caught] == [RuntimeWarning]
            assert caught[0].filename == __file__

    run(main)


def test_call_is_immutable_and_shows_no_secrets() -> None:
    call = SSEClient("http://user:secret@h/v1", headers={"X": "secret"}).call("/chat?key=secret", data={"a": "secret"})
    assert repr(call) == "<Call POST http://h/v1/chat>"
    assert copy.copy(call) is call
    assert copy.deepcopy([call]) == [call]
    with pytest.raises(AttributeError, match="Call is immutable"):
        call.url = "http://other"
    with pytest.raises(TypeError, match="Call cannot be pickled"):
        pickle.dumps(call)


def test_repr_of_a_relative_url(server: SSEServer) -> None:
    with Bridge(client=lambda: httpx.AsyncClient(base_url=server.url)) as bridge:
        client = SSEClient(bridge=bridge)
        assert repr(client.call("/x?key=secret")) == "<Call GET /x>"
        assert repr(client.call("http://h:x/secret")) == "<Call GET an invalid URL>"
