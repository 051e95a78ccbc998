"""Failures on the network, each a typed error; time limits; no error message contains a secret."""

from __future__ import annotations

import base64
import errno
import logging
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sseqbridge import (
    BufferLimitError,
    ConnectError,
    ProtocolError,
    ReadError,
    SSEError,
    StreamTimeoutError,
    Timeout,
    TruncatedStreamError,
    UsageError,
)
from sseqbridge._streams.stream import reader_of
from sseqbridge.testing import SSEServer, Step, comment, cut, hold, raw, reset, respond, send, silence, wait, wire
from tests.clock import FakeClock
from tests.requesters import Requester, Response
from tests.support import in_thread, until, until_no_stream_is_open

DONE = send("[DONE]")


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server whose connections are passed to `serve`, one after another in one thread. Yields its URL."""

    def run() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if is_over.is_set():
                    return
                serve(connection)

    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            is_over.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join()


# Before the response.


def test_refused_connection_raises_connect_error(ask: Requester, closed_port: int) -> None:
    with pytest.raises(ConnectError) as caught:
        ask(f"http://127.0.0.1:{closed_port}/v1?key=secret", data={})
    assert f"no connection to http://127.0.0.1:{closed_port}/v1: " in str(caught.value)
    assert str(caught.value).endswith(os.strerror(errno.ECONNREFUSED))
    assert caught.value.__cause__ is not None


def test_refusal_by_every_address_raises_connect_error(
    ask: Requester, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*args: Any, **kwargs: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, closed_port)) for host in ("127.0.0.1", "127.0.0.2")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ConnectError, match=os.strerror(errno.ECONNREFUSED)):
        ask(f"http://upstream.test:{closed_port}/")


def test_unknown_host_raises_connect_error(ask: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*args: Any, **kwargs: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ConnectError, match=r"no connection to http://upstream\.test/: Name or service not known"):
        ask("http://upstream.test/?key=secret")


def test_untrusted_certificate_raises_connect_error(ask: Requester, server_tls: ssl.SSLContext) -> None:
    with SSEServer([DONE], ssl_context=server_tls) as server:
        with pytest.raises(ConnectError, match="certificate verify failed") as caught:
            ask(server.url, {"Authorization": "secret"}, {"p": "secret"})
        assert server.requests == []
        assert caught.value.__cause__ is not None


def test_https_to_a_server_that_speaks_http(ask: Requester) -> None:
    with SSEServer([DONE]) as server, pytest.raises(ConnectError):
        ask(server.url.replace("http:", "https:"))


def test_http_to_a_server_that_speaks_https(ask: Requester, server_tls: ssl.SSLContext) -> None:
    with SSEServer([DONE], ssl_context=server_tls) as server, pytest.raises((ReadError, ProtocolError)):
        ask(server.url.replace("https:", "http:"))


@pytest.mark.parametrize("data", [None, {"a": 1}])
def test_a_server_that_closes_before_the_headers(ask: Requester, data: Any) -> None:
    with SSEServer([cut()]) as server:
        with pytest.raises(ReadError, match="before a response came"):
            ask(server.url, data=data)
        assert len(server.requests) == 1


def test_a_server_that_closes_within_the_headers(ask: Requester) -> None:
    with SSEServer([wire(b"HTTP/1.1 200 OK\r\nContent-Ty"), cut()]) as server, pytest.raises(ReadError):
        ask(server.url)


def test_a_server_that_resets_before_the_headers(ask: Requester) -> None:
    with SSEServer([reset()]) as server, pytest.raises(ReadError):
        ask(server.url)


def test_a_server_that_closes_each_connection_at_once(ask: Requester) -> None:
    with raw_server(lambda connection: None) as url, pytest.raises(ReadError):
        ask(url)


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Nul: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 300_000,
    ],
    ids=lambda garbage: repr(garbage[:20]),
)
def test_response_that_is_not_http_raises_protocol_error(ask: Requester, garbage: bytes) -> None:
    with SSEServer([wire(garbage), silence()]) as server:
        with pytest.raises(ProtocolError, match="not valid HTTP"):
            ask(server.url, timeout=60)
        assert server.requests[0].wait_aborted(30)


def test_error_after_a_redirect_names_the_final_server(ask: Requester, closed_port: int) -> None:
    location = f"http://127.0.0.1:{closed_port}/there?key=secret"
    with (
        SSEServer([respond(302, {"Location": location}, content_type=None)]) as server,
        pytest.raises(ConnectError, match=f"no connection to http://127.0.0.1:{closed_port}/there: "),
    ):
        ask(server.url)


# In the middle of the response.


def ends_after_one(ask: Requester, *steps: Step, head: Step | None = None, **options: Any) -> SSEError:
    """Read an event, then let the server play `steps`; return the error of the stream."""
    is_read = threading.Event()
    with (
        SSEServer([head or respond(), send(1), hold(is_read), *steps]) as server,
        ask(server.url, data={}, **options) as response,
    ):
        assert response.next() == 1
        is_read.set()
        items, error = response.fail()
        assert items == []
        assert response.fail() == ([], error)
        assert response.events.outcome == "error"
        return error


def test_reset_within_the_stream_raises_read_error(ask: Requester) -> None:
    error = ends_after_one(ask, reset())
    assert type(error) is ReadError
    assert error.__cause__ is not None


def test_a_chunked_body_that_ends_without_its_last_chunk(ask: Requester) -> None:
    error = ends_after_one(ask, cut())
    assert type(error) is TruncatedStreamError
    assert "mid-stream" in str(error)


@pytest.mark.parametrize("part", [b"f", b"ff\r", b"ff\r\ndata: 2\n", b"0\r\n"])
def test_a_chunk_that_is_cut_off(ask: Requester, part: bytes) -> None:
    assert type(ends_after_one(ask, wire(part), cut())) is TruncatedStreamError


def test_a_body_shorter_than_its_length(ask: Requester) -> None:
    assert type(ends_after_one(ask, head=respond(framing="length", length=100))) is TruncatedStreamError


def test_a_body_until_close_that_is_reset(ask: Requester) -> None:
    assert type(ends_after_one(ask, reset(), head=respond(framing="close"))) is ReadError


def test_an_event_that_is_too_large(ask: Requester) -> None:
    error = ends_after_one(ask, send("x" * 2000), silence(), max_event_bytes=1000)
    assert isinstance(error, BufferLimitError)
    assert error.limit == 1000


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([cut()], TruncatedStreamError),
        ([wire(b"no chunk\r\n"), silence()], ProtocolError),
        ([send("x" * 2000), silence()], BufferLimitError),
        ([raw(b"data: " + b"x" * 2000), silence()], BufferLimitError),
        ([send("x" * 600 + "\n" + "x" * 600), silence()], BufferLimitError),
    ],
)
def test_events_before_an_error_are_delivered_first(ask: Requester, steps: list[Step], kind: type[SSEError]) -> None:
    """Also if no consumer reads before the error arrives."""
    with (
        SSEServer([raw(b"data: 1\n\ndata: 2\n\n"), send(3), *steps]) as server,
        ask(server.url, max_event_bytes=1000) as response,
    ):
        if not ask.is_async:
            until_no_stream_is_open()
        items, error = response.fail()
        assert (items, type(error)) == ([1, 2, 3], kind)


def test_an_event_too_large_behind_others_in_one_read(ask: Requester) -> None:
    with SSEServer([raw(b"data: 1\n\ndata: 2\n\ndata: " + b"x" * 2000 + b"\n\n"), silence()]) as server:
        with ask(server.url, max_event_bytes=1000) as response:
            items, error = response.fail()
            assert (items, type(error)) == ([1, 2], BufferLimitError)
        assert server.requests[0].wait_aborted()


def test_an_error_ends_a_for_loop(ask: Requester) -> None:
    with SSEServer([send(1), cut()]) as server, ask(server.url) as response:
        with pytest.raises(TruncatedStreamError) as caught:
            response.items()
        with pytest.raises(TruncatedStreamError) as again:
            response.items()
        assert again.value is caught.value


# Time limits.


@contextmanager
def full_listener() -> Iterator[str]:
    """The URL of a port whose backlog is full, so that connecting to it never ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        try:
            for _ in range(8):
                client = socket.socket()
                waiting.append(client)
                client.setblocking(False)
                assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for client in waiting:
                client.close()


# For tests that advance the clock while connecting: only the limit under test may elapse.
UNLIMITED: dict[str, float | None] = {"connect": None, "read": None}


def times_out(
    clock: FakeClock, call: Callable[[], Any], which: str, seconds: float, *, began: float | None = None
) -> None:
    """Advance the clock until a call fails. It must fail by this limit, and not before the limit has elapsed.

    `began` is the time before a call that another thread makes.
    """
    began = clock.monotonic() if began is None else began
    with pytest.raises(StreamTimeoutError) as caught:
        clock.advance_until_done(call)
    assert (caught.value.which, caught.value.seconds) == (which, seconds)
    assert clock.monotonic() - began >= seconds
    assert f"after {seconds:g} s" in str(caught.value)
    assert f"timeout=Timeout({which}=" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("timeout", [30, {"connect": 30}, Timeout(connect=30)])
def test_connect_timeout(clock: FakeClock, ask: Requester, timeout: Any) -> None:
    with full_listener() as url:
        times_out(clock, lambda: ask(url, timeout=timeout), "connect", 30)


def test_connect_timeout_covers_the_tls_handshake(clock: FakeClock, ask: Requester) -> None:
    is_over = threading.Event()

    def ignore_handshake(connection: socket.socket) -> None:
        is_over.wait(30)

    with raw_server(ignore_handshake) as url:
        try:
            times_out(clock, lambda: ask(url.replace("http:", "https:"), timeout=30), "connect", 30)
        finally:
            is_over.set()


@pytest.mark.slow
@pytest.mark.parametrize("timeout", [30, {"read": 30}, Timeout(read=30)])
def test_read_timeout_before_the_headers(clock: FakeClock, ask: Requester, timeout: Any) -> None:
    with SSEServer([silence()]) as server:
        began = clock.monotonic()
        asking = in_thread(lambda: ask(server.url, timeout=timeout))
        request = server.wait_for_request(timeout=30)
        times_out(clock, asking.result, "read", 30, began=began)
        assert request.wait_aborted(30)


@pytest.mark.slow
def test_write_timeout(clock: FakeClock, ask: Requester) -> None:
    is_over = threading.Event()

    def never_read(connection: socket.socket) -> None:
        is_over.wait(30)
        # Unread bytes are discarded, so that closing does not wait.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with raw_server(never_read) as url:
        timeout = Timeout(read=30, connect=None)
        asking = in_thread(lambda: ask(url, content=bytes(50_000_000), timeout=timeout))
        try:
            with pytest.raises(StreamTimeoutError) as caught:
                clock.advance_until_done(asking.result)
        finally:
            is_over.set()
    assert caught.value.which == "write"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("timeout", "which"), [(30, "read"), ({"read": 30}, "read"), (Timeout(idle=30), "idle"), ({"total": 30}, "total")]
)
def test_read_timeout_within_the_stream(clock: FakeClock, ask: Requester, timeout: Any, which: str) -> None:
    with SSEServer([send(1), silence()]) as server:
        with ask(server.url, timeout=timeout) as response:
            assert response.next() == 1
            items, error = clock.advance_until_done(response.fail)
            assert items == []
            assert isinstance(error, StreamTimeoutError)
            assert (error.which, error.seconds) == (which, 30)
            assert response.fail()[1] is error
            assert response.events.outcome == "error"
        assert server.requests[0].wait_aborted(30)


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", [comment("ping"), raw(b"event: ping\n\n"), raw(b"id: 3\n\n"), raw(b"retry: 9\n\n"), raw(b"\n")]
)
@pytest.mark.parametrize("options", [{}, {"decode": "event", "comments": True}])
def test_heartbeats_do_not_reset_the_idle_timeout(
    clock: FakeClock, ask: Requester, step: Step, options: dict[str, Any]
) -> None:
    # Many more heartbeats than the limit allows, so that the stream does not end first.
    with SSEServer([send(1), *[step, wait(1)] * 20_000]) as server:
        with ask(server.url, timeout={**UNLIMITED, "idle": 30}, **options) as response:
            _, error = clock.advance_until_done(response.fail)
            assert isinstance(error, StreamTimeoutError)
            assert error.which == "idle"
        assert server.requests[0].wait_aborted(30)


def test_heartbeats_reset_the_read_timeout(clock: FakeClock, ask: Requester) -> None:
    flags = [threading.Event() for _ in range(5)]
    heartbeats = [step for flag in flags for step in (hold(flag), comment("ping"))]
    with (
        SSEServer([send(1), *heartbeats, send(2), DONE]) as server,
        ask(server.url, timeout=Timeout(read=600)) as response,
    ):
        assert response.next() == 1
        reading = in_thread(response.items)
        for flag in flags:
            received = response.events.stats.bytes
            clock.advance(400)
            flag.set()
            until(lambda received=received: response.events.stats.bytes > received)  # type: ignore[misc]
        assert reading.result(30) == [2]


def is_under_backpressure(response: Response) -> bool:
    """Whether the stream is under backpressure."""
    subscription: Any = reader_of(response.events).cursor.subscription
    return response.events.stats.buffered > 0 and subscription.writer.idle_since is None


@pytest.mark.parametrize("which", ["idle", "read"])
def test_timeouts_pause_during_backpressure(clock: FakeClock, ask: Requester, which: str) -> None:
    with (
        SSEServer([*[send("x" * 100)] * 100, DONE]) as server,
        ask(server.url, decode="text", max_buffered_bytes=1000, timeout={which: 300}) as response,
    ):
        assert response.next() == "x" * 100
        ask.run_blocking(until, lambda: is_under_backpressure(response))
        clock.advance(1000)
        response.settle()
        assert len(response.items()) == 99
        assert response.events.outcome == "done"


@pytest.mark.slow
def test_total_timeout(clock: FakeClock, ask: Requester) -> None:
    with SSEServer([send(1), wait(1)] * 20_000) as server:
        with ask(server.url, timeout={**UNLIMITED, "total": 300}) as response:
            assert response.next() == 1
            items, error = clock.advance_until_done(response.fail)
            assert set(items) <= {1}
            assert isinstance(error, StreamTimeoutError)
            assert error.which == "total"
        assert server.requests[0].wait_aborted(30)


def test_total_timeout_during_backpressure_is_no_clean_end(clock: FakeClock, ask: Requester) -> None:
    """The whole stream has arrived, but the consumer has not made room for it in time."""
    body = b"".join(b"data: %d\n\n" % n for n in range(1000)) + b"data: [DONE]\n\n"
    with (
        SSEServer([respond(headers={"Content-Length": str(len(body))}), body]) as server,
        ask(server.url, timeout={"total": 300}, max_buffered_bytes=100_000) as response,
    ):
        until(lambda: server.requests[0].sent_bytes >= len(body))
        ask.run_blocking(until, lambda: is_under_backpressure(response))
        clock.advance(301)
        response.settle()
        items, error = response.fail()
        assert isinstance(error, StreamTimeoutError)
        assert error.which == "total"
        assert items == list(range(len(items)))
        assert 0 < len(items) < 1000
        assert response.events.outcome == "error"


@pytest.mark.slow
def test_total_counts_from_the_call(clock: FakeClock, ask: Requester) -> None:
    timeout = {**UNLIMITED, "total": 300}
    with SSEServer([silence()]) as server:
        began = clock.monotonic()
        asking = in_thread(lambda: ask(server.url, timeout=timeout))
        request = server.wait_for_request(timeout=30)
        times_out(clock, asking.result, "total", 300, began=began)
        assert request.wait_aborted(30)
    with full_listener() as url:
        times_out(clock, lambda: ask(url, timeout=timeout), "total", 300)


def test_timeout_none_never_elapses(ask: Requester) -> None:
    flag = threading.Event()
    with SSEServer([send(1), hold(flag), DONE]) as server, ask(server.url, timeout=None) as response:
        assert response.next() == 1
        flag.set()
        assert response.items() == []


# Secrets.

SECRET = "s3cr3t"
HEADERS = {"Authorization": f"Bearer {SECRET}", "X-Api-Key": SECRET, "Cookie": f"a={SECRET}"}
BODY = {"prompt": SECRET}
QUERY = f"?key={SECRET}"
Failing = Callable[[Requester, str], Response]


def contains_secret(text: str) -> bool:
    return SECRET in text or base64.b64encode(f"user:{SECRET}".encode()).decode() in text


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception with its causes and contexts, also contexts that `from None` hides in a traceback."""
    if error is not None:
        yield error
        yield from chain(error.__cause__)
        if error.__context__ is not error.__cause__:
            yield from chain(error.__context__)


@pytest.fixture
def no_secret(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[BaseException], None]]:
    """A function that fails if an error contains the secret. After the test, the log is checked too."""

    def check(error: BaseException) -> None:
        for link in chain(error):
            assert not contains_secret(str(link)), type(link)
            assert not contains_secret(repr(link)), type(link)

    with caplog.at_level(logging.DEBUG, logger="sseqbridge"):
        yield check
    for record in caplog.records:
        if record.name.startswith("sseqbridge"):
            assert not contains_secret(logging.Formatter().format(record) + repr(record.args))


def with_secrets(**options: Any) -> Failing:
    def call(ask: Requester, url: str) -> Response:
        url_with_secrets = url.replace("://", f"://user:{SECRET}@") + QUERY
        return ask(url_with_secrets, HEADERS, **{"data": BODY, "timeout": Timeout(read=0.1), **options})

    return call


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps",
    [
        [cut()],
        [reset()],
        [silence()],
        [wire(b"garbage\r\n\r\n")],
        [send(1), cut()],
        [send(1), reset()],
        [send(1), silence()],
        [send(1), wire(b"no chunk\r\n")],
        [send("no JSON")],
        [send({"error": "busy"})],
        [respond(500, content_type=None), raw(b"no")],
        [respond(content_type="text/html"), raw(b"no")],
        [respond(headers={"Content-Encoding": "br"})],
        [respond(headers={"Content-Encoding": "gzip"}), raw(b"no gzip")],
        [respond(302, {"Location": f"/there{QUERY}"})],
        [respond(307, {"Location": f"http://user:{SECRET}@127.0.0.2/there{QUERY}"})],
        [respond(307, {"Location": f"ftp://127.0.0.1/{QUERY}"})],
        [respond(307)],
        [respond(307, {"Location": f"?key={SECRET}"})],
    ],
    ids=range(19),
)
@pytest.mark.parametrize(
    "options",
    [
        {"decode": "text"},
        {"cookies": {"b": SECRET}, "auth": ("user", SECRET)},
        {"data": None, "params": {"key": SECRET}},
        {"data": None, "content": SECRET},
    ],
    ids=["", "cookies, auth", "params", "content"],
)
def test_errors_of_responses_contain_no_secret(
    ask: Requester, steps: list[Step], options: dict[str, Any], no_secret: Callable[[BaseException], None]
) -> None:
    with SSEServer(steps) as server:
        try:
            with with_secrets(**options)(ask, server.url) as response:
                assert not contains_secret(repr(response.response) + repr(response.events) + str(response.response))
                if response.status != 200:
                    response.raise_for_status()
                response.items()
        except SSEError as error:
            no_secret(error)


def test_errors_of_connections_contain_no_secret(
    ask: Requester, closed_port: int, server_tls: ssl.SSLContext, no_secret: Callable[[BaseException], None]
) -> None:
    with SSEServer(ssl_context=server_tls) as tls, full_listener() as full:
        for url in (f"http://127.0.0.1:{closed_port}", "http://upstream.test", tls.url, full):
            with pytest.raises(SSEError) as caught:
                with_secrets(timeout=0.1)(ask, url)
            no_secret(caught.value)


def test_errors_of_proxies_contain_no_secret(
    ask_fresh: Requester, closed_port: int, monkeypatch: pytest.MonkeyPatch, no_secret: Callable[[BaseException], None]
) -> None:
    with SSEServer([respond(407, content_type=None)]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:{SECRET}@127.0.0.1:{closed_port}")
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("://", f"://user:{SECRET}@"))
        for url in ("http://upstream.test", "https://upstream.test"):
            with pytest.raises(ConnectError) as caught:
                with_secrets(timeout=60)(ask_fresh, url)
            no_secret(caught.value)


class Secretive:
    def __repr__(self) -> str:
        return SECRET


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("", {"headers": {"Authorization": f"Bearer {SECRET}\n"}}),
        ("", {"headers": {"Authorization": f"{SECRET}\u20ac"}}),
        ("", {"headers": {"Authorization": [SECRET]}}),
        ("", {"headers": {f"Authorization: {SECRET}": "x"}}),
        ("", {"headers": [("Authorization", SECRET, SECRET)]}),
        ("", {"headers": SECRET}),
        ("", {"data": {"a": SECRET, "b": float("nan")}}),
        ("", {"data": {"a": SECRET, "b": {1}}}),
        ("", {"data": {"a": SECRET, "b": "\udc80"}}),
        ("", {"data": {"a": Secretive()}}),
        ("", {"data": {(SECRET,): 1}}),
        ("", {"data": SECRET}),
        ("", {"data": SECRET.encode()}),
        ("", {"content": {"a": SECRET}}),
        ("", {"content": Secretive()}),
        ("", {"content": f"{SECRET}\udc80"}),
        ("", {"files": SECRET}),
        ("", {"cookies": {"a": f"{SECRET}\n"}}),
        ("", {"cookies": {"a": f"{SECRET}\u20ac"}}),
        ("", {"cookies": SECRET}),
        ("", {"auth": SECRET}),
        ("", {"auth": ["user", SECRET]}),
        ("", {"auth": ("user", SECRET, SECRET)}),
        ("", {"auth": (None, SECRET)}),
        ("", {"params": {"a": Secretive()}, "method": "G T"}),
        ("", {"params": f"{SECRET}\udc80"}),
        ("", {"timeout": Secretive()}),
        ("", {"extensions": SECRET}),
        ("", {"cancel": Secretive()}),
        (f"ftp://user:{SECRET}@127.0.0.1/{QUERY}", {}),
        (f"user:{SECRET}@127.0.0.1/{QUERY}", {}),
        (f"http://user:{SECRET}@/{QUERY}", {}),
        (f"http://user:{SECRET}@127.0.0.1:x/{QUERY}", {}),
        (f"http://user:{SECRET}@127.0.0.1:{SECRET}/{QUERY}", {}),
        (f"http://user:{SECRET}@127.0.0.1/{QUERY}\n", {}),
        (f"http://user:{SECRET}@127.0.0.1/{QUERY}\udc80", {}),
        (SECRET.encode(), {}),
    ],
    ids=range(37),
)
def test_usage_errors_contain_no_secret(
    ask: Requester, url: Any, options: dict[str, Any], no_secret: Callable[[BaseException], None]
) -> None:
    with SSEServer([DONE]) as server:
        with pytest.raises(UsageError) as caught:
            ask(url or server.url, **options)
        no_secret(caught.value)
        assert server.requests == []
