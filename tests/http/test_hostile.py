"""Hostile upstreams, through request_sse and arequest_sse.

Each ends in a typed error or the right result, in bounded time and memory, and the next request to the same server, on
the same bridge, is answered normally. (Servers that are merely broken are in tests/streams/test_errors.py.)
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from sseqbridge import (
    BufferLimitError,
    ProtocolError,
    ReadError,
    RedirectError,
    SSEError,
    StatusError,
    StreamTimeoutError,
    Timeout,
    TruncatedStreamError,
    request_sse,
)
from sseqbridge._http import client as http_client
from sseqbridge.testing import (
    ReceivedRequest,
    SSEServer,
    Step,
    cut,
    hold,
    raw,
    reset,
    respond,
    send,
    silence,
    wait,
    wire,
)
from tests.clock import FakeClock
from tests.requesters import Requester
from tests.sse.reference_parser import parse
from tests.support import HAS_OWN_TRANSPORT, in_thread, python, until

from .reference_http import body_by_h11

DONE = send("[DONE]")

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

own_transport = pytest.mark.own_transport


class Peak:
    """The peak of the memory that Python objects allocate in a `with` block, in MiB."""

    def __enter__(self) -> Peak:
        tracemalloc.start()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.mib = (tracemalloc.get_traced_memory()[1] - self._before) / 1024 / 1024
        tracemalloc.stop()


Script = Callable[[ReceivedRequest], Iterable[Step]] | list[Step]


@contextlib.contextmanager
def hostile(ask: Requester, script: Script) -> Iterator[SSEServer]:
    """A server that plays `script`; after the block, one more request must be answered normally."""

    def handler(request: ReceivedRequest) -> Iterable[Step]:
        if request.path == "/fine":
            return [send("fine"), DONE]
        return script(request) if callable(script) else script

    with SSEServer(handler) as server:
        yield server
        is_fine(ask, server)


@contextlib.contextmanager
def bounded(ask: Requester, script: Script, mib: float = 8) -> Iterator[SSEServer]:
    """Like `hostile`, and the block, with the server, may allocate at most `mib` MiB."""
    with hostile(ask, script) as server:
        with Peak() as peak:
            yield server
        assert peak.mib < mib


def is_fine(ask: Requester, server: SSEServer) -> None:
    assert ask(f"{server.url}/fine", decode="text").items() == ["fine"]


def fail(ask: Requester, url: str, **options: Any) -> tuple[list[Any], SSEError]:
    """Send a request and read to the error; return the items before it, and the error."""
    try:
        response = ask(url, **options)
    except SSEError as error:
        return [], error
    with response:
        return response.fail()


def endless(*first: bytes, over_and_over: bytes) -> Callable[[ReceivedRequest], Iterator[Step]]:
    """A script that sends until the client closes the connection."""

    def script(request: ReceivedRequest) -> Iterator[Step]:
        yield from map(wire, first)
        while True:
            yield wire(over_and_over)

    return script


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# Endless heads, lines and events.


@pytest.mark.parametrize(
    ("begun", "over_and_over"),
    [(b"HTTP/1.1 200 ", b"OK" * 1000), (HEAD, b"X-Field: value\r\n" * 1000), (HEAD + b"X-Field: ", b"x" * 10_000)],
    ids=["status line", "fields", "a field"],
)
def test_endless_header(ask: Requester, begun: bytes, over_and_over: bytes) -> None:
    with bounded(ask, endless(begun, over_and_over=over_and_over)) as server:
        items, error = fail(ask, server.url)
        assert (items, type(error)) == ([], ProtocolError)
        server.requests[0].wait_aborted()


@pytest.mark.parametrize("begun", [b"data: ", b": ", b"x", b"retry: 1", b"id: "], ids=repr)
def test_endless_line(ask: Requester, begun: bytes) -> None:
    script = endless(CHUNKED, chunk(b"data: 1\n\n"), chunk(begun), over_and_over=chunk(b"1" * 50_000))
    with bounded(ask, script) as server:
        items, error = fail(ask, server.url, max_event_bytes=1024 * 1024)
        assert (items, type(error)) == ([1], BufferLimitError)
        server.requests[0].wait_aborted()


@pytest.mark.slow
def test_endless_event(ask: Requester) -> None:
    lines = chunk(b"data: 12345\n" * 5000)
    with bounded(ask, endless(CHUNKED, chunk(b"data: 1\n\n"), over_and_over=lines)) as server:
        items, error = fail(ask, server.url, max_event_bytes=256 * 1024)
        assert (items, type(error)) == ([1], BufferLimitError)
        server.requests[0].wait_aborted()


@pytest.mark.slow
def test_endless_event_without_data(clock: FakeClock, ask: Requester) -> None:
    """Nothing is buffered, so no size limit applies, but no event arrives in time."""
    lines = chunk(b"id: 1\nevent: x\nretry: 5\nunknown: y\n" * 1000)
    with bounded(ask, endless(CHUNKED, chunk(b"data: 1\n\n"), over_and_over=lines)) as server:
        response = ask(server.url, timeout=Timeout(idle=60, read=None))
        assert response.next() == 1
        items, error = clock.advance_until_done(response.fail, step=10)
        assert items == []
        assert isinstance(error, StreamTimeoutError)
        assert error.which == "idle"
        server.requests[0].wait_aborted()


@pytest.mark.heavy
def test_million_tiny_events_in_a_chunk(ask: Requester) -> None:
    """In an interpreter of its own, whose memory is the library's."""
    program = """
import asyncio, sys
from sseqbridge import arequest_sse, request_sse
from tests.support import peak_rss

async def count():
    events = (await arequest_sse(sys.argv[2], decode="text")).events
    return [item async for item in events].count("1")

# The first request allocates memory for good.
list(request_sse(sys.argv[2] + "/fine", decode="text").events)
before = peak_rss()
if sys.argv[1] == "async":
    counted = asyncio.run(count())
else:
    counted = list(request_sse(sys.argv[2], decode="text").events).count("1")
fine = list(request_sse(sys.argv[2] + "/fine", decode="text").events)
print(counted, fine, (peak_rss() - before) // 1024 // 1024)
"""
    body = CHUNKED + chunk(b"data: 1\n\n" * 1_000_000) + b"0\r\n\r\n"
    with hostile(ask, [wire(body)]) as server:
        status, out, err = python(program, "async" if ask.is_async else "sync", server.url)
        assert (status, err) == (0, "")
        counted, fine, mib = out.split()
        assert (counted, fine) == ("1000000", "['fine']")
        assert int(mib) < 24


# Decompression bombs.


def bomb(frame: bytes, megabytes: int, begin: bytes = b"") -> bytes:
    compressor = zlib.compressobj(wbits=31)
    block = frame * (1024 * 1024 // len(frame))
    blocks = [begin, *[block] * megabytes]
    return b"".join([*map(compressor.compress, blocks), compressor.flush()])


def zipped(body: bytes, status: int = 200, content_type: str = "text/event-stream") -> list[Step]:
    return [respond(status, {"Content-Encoding": "gzip"}, content_type=content_type), raw(body)]


@pytest.mark.slow
def test_gzip_bomb_of_one_line_ends_in_an_error(ask: Requester) -> None:
    for begin, kind in ((b"data: ", BufferLimitError), (b"", ProtocolError)):
        with bounded(ask, zipped(bomb(b"x", 100, begin))) as server:
            items, error = fail(ask, server.url, max_event_bytes=1024 * 1024)
            assert (items, type(error)) == ([], kind)


@pytest.mark.slow
def test_gzip_bomb_of_empty_lines_ends_normally(ask: Requester) -> None:
    with (
        bounded(ask, zipped(bomb(b":" + b"x" * 16_382 + b"\n", 100))) as server,
        ask(server.url) as response,
    ):
        assert response.items() == []
        assert response.events.outcome == "eof"


@pytest.mark.heavy
def test_gzip_bomb_of_events_is_subject_to_backpressure(ask: Requester) -> None:
    with (
        bounded(ask, zipped(bomb(b"data: 1\n\n" + b":" + b"x" * 4085 + b"\n", 64))) as server,
        ask(server.url) as response,
    ):
        assert set(response.items()) == {1}
        assert response.events.stats.events == 64 * 256


@pytest.mark.slow
def test_gzip_bomb_in_an_error_response_is_cut_off(ask: Requester) -> None:
    with bounded(ask, zipped(bomb(b"x", 100), 500, "text/plain")) as server:
        _, error = fail(ask, server.url, decode="text")
        assert isinstance(error, StatusError)
        assert len(error.body) == 1024 * 1024


@pytest.mark.heavy
def test_gzip_bomb_of_comments_delays_no_other_stream() -> None:
    """64 KiB expand to 32 MB of comments, which backpressure does not stop since they contain no event."""
    script = [*zipped(gzip.compress(b":\n" * (16 * 1024 * 1024))), silence()]
    with (
        SSEServer(script) as bombing,
        SSEServer([send(1), DONE]) as other,
        request_sse(bombing.url).events as held,
    ):
        reading = in_thread(lambda: list(held))
        until(lambda: held.stats.bytes > 0)
        for _ in range(3):
            assert list(request_sse(other.url).events) == [1]
        assert not reading.done()
        held.close()
        assert reading.result(30) == []


# Wrong chunk sizes.


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([wire(b"8\r\ndata: 2\n\n\r\n0\r\n\r\n"), silence()], ProtocolError),
        ([wire(b"a\r\ndata: 2\n\n\r\n0\r\n\r\n"), silence()], ProtocolError),
        ([wire(b"ff\r\ndata: 2\n\r\n0\r\n\r\n"), cut()], TruncatedStreamError),
        ([wire(b"ff\r\ndata: 2\n\r\n0\r\n\r\n"), silence()], StreamTimeoutError),
        ([wire(b"fffffffffffffff\r\ndata: 2\n\r\n0\r\n\r\n"), cut()], TruncatedStreamError),
        ([wire(b"fffffffffffffffffffffff\r\ndata: 2\n\n"), silence()], ProtocolError),
        ([wire(b"-1\r\ndata: 2\n\n"), silence()], ProtocolError),
        ([wire(b"xyz\r\ndata: 2\n\n"), silence()], ProtocolError),
        ([wire(b"\r\n\r\ndata: 2\n\n"), silence()], ProtocolError),
        ([*[wire(b"0" * 10_000)] * 20, silence()], ProtocolError),
        ([wire(b"9;"), *[wire(b"x" * 10_000)] * 20, silence()], ProtocolError),
    ],
    ids=[
        *("too small", "too large by one", "too large, cut", "too large, silence", "huge"),
        *("of no number", "negative", "no digits", "none", "endless", "endless extension"),
    ],
)
def test_wrong_chunk_size_is_an_error(
    clock: FakeClock, ask: Requester, steps: list[Step], kind: type[SSEError]
) -> None:
    with bounded(ask, [wire(CHUNKED + chunk(b"data: 1\n\n")), *steps]) as server:
        response = ask(server.url, timeout=60)
        assert response.next() == 1
        is_silent = kind is StreamTimeoutError
        items, error = clock.advance_until_done(response.fail, step=10) if is_silent else response.fail()
        # If the size is only a little wrong, the chunk's bytes before the fault are delivered.
        assert items in ([], [2])
        assert type(error) is kind


# One byte a second of the test's clock.


def dripping(*first: bytes, over_and_over: bytes) -> Callable[[ReceivedRequest], Iterator[Step]]:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        yield from map(wire, first)
        for _ in range(1000):
            yield wait(1)
            yield wire(over_and_over)

    return script


@pytest.mark.slow
@pytest.mark.parametrize("which", ["idle", "total"])
def test_slow_drip_of_a_stream(clock: FakeClock, ask: Requester, which: str) -> None:
    script = dripping(CHUNKED + chunk(b"data: 1\n\n") + chunk(b"data: "), over_and_over=chunk(b"x"))
    with bounded(ask, script) as server:
        response = ask(server.url, timeout={"read": None, which: 60})
        assert response.next() == 1
        items, error = clock.advance_until_done(response.fail, step=0.5)
        assert items == []
        assert isinstance(error, StreamTimeoutError)
        assert error.which == which
        server.requests[0].wait_aborted()


@pytest.mark.slow
@pytest.mark.parametrize("first", [b"", HEAD], ids=["status line", "field"])
def test_slow_drip_of_a_head(clock: FakeClock, ask: Requester, first: bytes) -> None:
    with bounded(ask, dripping(first, over_and_over=b"x")) as server:
        asking = in_thread(lambda: fail(ask, server.url, timeout={"connect": None, "read": None, "total": 60}))
        until(lambda: server.requests)
        clock.advance_until(asking.done, step=0.5)
        items, error = asking.result()
        assert items == []
        assert isinstance(error, StreamTimeoutError)
        assert error.which == "total"
        server.requests[0].wait_aborted()


def test_slow_drip_of_an_error_response(clock: FakeClock, ask: Requester) -> None:
    """The part that arrives in time is returned."""
    head = b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n"
    with hostile(ask, dripping(head + chunk(b"x"), over_and_over=chunk(b"x"))) as server, ask(server.url) as response:
        [text] = clock.advance_until_done(response.items, step=0.5)
        assert response.status == 500
        assert set(text) == {"x"}


# Connections that end at each byte of a response.

EVENTS = b"id: 1\ndata: 1\n\nevent: x\r\ndata: 2\r\n\r\n"
RESPONSES = {
    "chunked": CHUNKED + chunk(EVENTS[:15]) + chunk(EVENTS[15:]) + b"0\r\n\r\n",
    "length": HEAD + b"Content-Length: %d\r\n\r\n" % len(EVENTS) + EVENTS,
}


def items_of(response: bytes) -> list[int] | None:
    """Return the items in the beginning of a response; None if its head is incomplete."""
    head, end, body = response.partition(b"\r\n\r\n")
    if not end:
        return None
    events = parse(body_by_h11(body)[0] if b"chunked" in head else body).items
    return [int(event.data) for event in events if not isinstance(event, str) and hasattr(event, "data")]


@pytest.mark.heavy
@pytest.mark.parametrize("framing", RESPONSES)
def test_close_at_every_byte_of_a_response(ask: Requester, framing: str) -> None:
    whole = RESPONSES[framing]

    def script(request: ReceivedRequest) -> list[Step]:
        return [wire(whole[: int(request.path[1:])]), cut()]

    with hostile(ask, script) as server:
        for end in range(len(whole)):
            items, error = fail(ask, f"{server.url}/{end}")
            expected = items_of(whole[:end])
            assert items == (expected or [])
            assert type(error) is (ReadError if expected is None else TruncatedStreamError)
            is_fine(ask, server)


@pytest.mark.heavy
@pytest.mark.parametrize("framing", RESPONSES)
def test_reset_at_every_byte_of_a_response(ask: Requester, framing: str) -> None:
    whole = RESPONSES[framing]

    def script(request: ReceivedRequest) -> list[Step]:
        return [wire(whole[: int(request.path[1:])]), hold(is_read), reset()]

    is_read = threading.Event()
    with hostile(ask, script) as server:
        for end in range(len(whole)):
            expected = items_of(whole[:end])
            if expected is None:
                # A reset drops the bytes that the client has not read.
                is_read.set()
                assert fail(ask, f"{server.url}/{end}")[1].__class__ is ReadError
            else:
                is_read.clear()
                with ask(f"{server.url}/{end}") as response:
                    assert [response.next() for _ in expected] == expected
                    is_read.set()
                    items, error = response.fail()
                    assert (items, type(error)) == ([], ReadError)
            is_fine(ask, server)


@own_transport  # httpx's transport does not retry if a kept-alive connection closes on use
@pytest.mark.parametrize("leave", [cut, reset])
@pytest.mark.parametrize("framing", RESPONSES)
def test_end_of_the_connection_after_a_complete_response(
    ask: Requester, framing: str, leave: Callable[[], Step]
) -> None:
    is_read = threading.Event()
    with hostile(ask, [wire(RESPONSES[framing]), hold(is_read), leave()]) as server, ask(server.url) as response:
        assert response.items() == [1, 2]
        assert response.events.outcome == "eof"
        is_read.set()
        assert server.requests[0].finished.wait(30)


# TLS that ends or is damaged within a record.


@contextlib.contextmanager
def tls_server(context: ssl.SSLContext, damage: Callable[[str, bytes], bytes], *, is_reset: bool) -> Iterator[str]:
    """Yield the URL of a server that passes its records through `damage`, with the path, and closes the connection."""

    def serve(connection: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(incoming, outgoing, server_side=True)

        def done(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    connection.sendall(outgoing.read())
                    incoming.write(connection.recv(65_536))

        done(session.do_handshake)
        path = done(lambda: session.read(65_536)).split()[1].decode()
        # The tickets of TLS 1.3.
        connection.sendall(outgoing.read())
        for part in (CHUNKED, chunk(b"data: 1\n\n"), chunk(b"data: 2\n\n") + b"0\r\n\r\n"):
            session.write(part)
        connection.sendall(damage(path, outgoing.read()))
        if is_reset and path != "/fine":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def run() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if is_over.is_set():
                    return
                connection.settimeout(30)
                serve(connection)

    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = in_thread(run)
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            is_over.set()
            socket.create_connection(listener.getsockname()).close()
            serving.result(30)


@pytest.mark.slow
@pytest.mark.parametrize("is_reset", [False, True], ids=["cut", "reset"])
def test_tls_connection_that_ends_within_a_record(
    ask_fresh: Requester,
    monkeypatch: pytest.MonkeyPatch,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    is_reset: bool,
) -> None:
    def damage(path: str, records: bytes) -> bytes:
        sizes.add(len(records))
        return records if path == "/fine" else records[: int(path[1:])]

    monkeypatch.setattr(http_client, "_tls_context", client_tls)
    sizes: set[int] = set()
    with tls_server(server_tls, damage, is_reset=is_reset) as url:
        whole = 0
        for end in range(0, 1000, 9):
            items, error = fail(ask_fresh, f"{url}/{end}")
            assert type(error) in (ReadError, TruncatedStreamError)
            assert items == [1, 2][: len(items)]
            if not is_reset:
                # All complete records are read.
                assert len(items) >= whole
                whole = len(items)
            assert ask_fresh(f"{url}/fine").items() == [1, 2]
            if sizes and end + 9 >= min(sizes):
                break
        assert is_reset or whole == 1


def test_damaged_tls_record_is_an_error(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    def damage(path: str, records: bytes) -> bytes:
        return records if path == "/fine" else records[:-1] + bytes([records[-1] ^ 1])

    monkeypatch.setattr(http_client, "_tls_context", client_tls)
    with tls_server(server_tls, damage, is_reset=False) as url:
        items, error = fail(ask_fresh, url)
        # httpx's transport drops the bytes of the same read.
        assert items == [1] or not HAS_OWN_TRANSPORT
        assert type(error) is ReadError
        assert ask_fresh(f"{url}/fine").items() == [1, 2]


# Redirects.


@pytest.mark.parametrize("loop", [["/a"], ["/a", "/b"], ["/a", "//localhost:{port}/b"]], ids=len)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_endless_redirects_are_an_error(ask: Requester, loop: list[str], method: str) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        location = loop[("/a", "/b").index(request.path) - len(loop) + 1]
        port = server.url.rpartition(":")[2]
        return [respond(307, {"Location": location.format(port=port)}, content_type=None)]

    with hostile(ask, script) as server:
        with pytest.raises(RedirectError, match="more than 20") as caught:
            ask(f"{server.url}/a", method=method, follow_redirects=True)
        assert caught.value.status == 307
        assert len(server.requests) == 21


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_redirect_to_another_origin_drops_authorization(ask: Requester, host: str) -> None:
    """Another host or port is another origin; see also tests/streams/test_request.py."""
    headers = {"Authorization": "Bearer secret", "X-Api-Key": "secret", "Cookie": "secret=1"}
    with SSEServer([send(1), DONE]) as other:
        elsewhere = other if host == "127.0.0.1" else None

        def script(request: ReceivedRequest) -> list[Step]:
            if request.path == "/there":
                return [send(1), DONE]
            location = f"http://{host}:{(elsewhere or server).url.rpartition(':')[2]}/there"
            return [respond(307, {"Location": location}, content_type=None)]

        with hostile(ask, script) as server:
            assert ask(server.url, headers).items() == [1]
            first, *more = [*server.requests, *other.requests]
            assert first.headers["authorization"] == "Bearer secret"
            [second] = more
            assert "secret" not in str(second.header_pairs)


# Interim responses.


@pytest.mark.parametrize("number", [1, 90])
def test_interim_responses_are_skipped(ask: Requester, number: int) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n" * (number // 2 + 1)
    with hostile(ask, [wire(interim + RESPONSES["chunked"])]) as server, ask(server.url) as response:
        assert (response.status, response.items()) == (200, [1, 2])


@own_transport
def test_endless_interim_responses_are_an_error(ask: Requester) -> None:
    script = endless(over_and_over=b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 50)
    with bounded(ask, script) as server:
        items, error = fail(ask, server.url)
        assert (items, type(error)) == ([], ProtocolError)
        server.requests[0].wait_aborted()


def test_interim_response_without_a_response_is_an_error(ask: Requester) -> None:
    with hostile(ask, [wire(b"HTTP/1.1 100 Continue\r\n\r\n"), cut()]) as server:
        items, error = fail(ask, server.url)
        assert (items, type(error)) == ([], ReadError)


def test_unrequested_protocol_switch_is_refused(ask: Requester) -> None:
    script = [wire(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\ndata: 1\n\n")]
    with hostile(ask, script) as server:
        items, error = fail(ask, server.url)
        assert (items, type(error)) == ([], ProtocolError)


@own_transport
@pytest.mark.parametrize(
    "line",
    [
        b"Transfer-Encoding: identity",
        b"Content Security Policy: x",
        b"no colon",
        b": no name",
        b"X-Powered-By : x",
        b"X-Folded: a\r\n b",
    ],
)
def test_harmless_malformed_header_is_ignored(ask: Requester, line: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n" + line + b"\r\n\r\n"
    with hostile(ask, [wire(head + b"data: 1\n\n"), cut()]) as server, ask(server.url) as response:
        assert (response.status, response.items()) == (200, [1])


# Trailers.


def test_trailers_are_skipped(ask: Requester) -> None:
    trailers = b"0\r\nContent-Type: text/html\r\nContent-Length: 5\r\nX-Checksum: 1\r\n\r\n"
    script = [wire(CHUNKED + chunk(b"data: 1\n\n") + trailers)]
    with hostile(ask, script) as server:
        for _ in range(2):
            with ask(server.url) as response:
                assert response.items() == [1]
                assert response.headers["content-type"] == "text/event-stream"
        assert server.connections == 1


@pytest.mark.parametrize("over_and_over", [b"X: y\r\n" * 1000, b"x" * 10_000], ids=["fields", "a field"])
def test_endless_trailers_are_an_error(ask: Requester, over_and_over: bytes) -> None:
    script = endless(CHUNKED, chunk(b"data: 1\n\n"), b"0\r\n", over_and_over=over_and_over)
    with bounded(ask, script) as server:
        items, error = fail(ask, server.url)
        assert (items, type(error)) == ([1], ProtocolError)
        server.requests[0].wait_aborted()


# The server closes a reused connection after it has received the request, without a response.


def closes_the_second(leave: Step, *first: Step, times: int = 1) -> Callable[[ReceivedRequest], list[Step]]:
    """A script that responds to the first request, and ends the connection at the next `times` requests."""
    number = 0

    def script(request: ReceivedRequest) -> list[Step]:
        nonlocal number
        number += 1
        return [*first, leave] if 2 <= number <= 1 + times else [send(1), DONE]

    return script


both_ends = pytest.mark.parametrize("leave", [cut(), reset()], ids=["cut", "reset"])


@own_transport
@both_ends
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_safe_request_is_retried_on_a_new_connection(
    ask_fresh: Requester,
    monkeypatch: pytest.MonkeyPatch,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    leave: Step,
    secure: bool,
    method: str,
) -> None:
    monkeypatch.setattr(http_client, "_tls_context", client_tls)
    with SSEServer(closes_the_second(leave), ssl_context=server_tls if secure else None) as server:
        for _ in range(3):
            response = ask_fresh(f"{server.url}/?a=b", {"X-Name": "value"}, method=method)
            assert (response.status, response.items()) == (200, [] if method == "HEAD" else [1])
        first, lost, again, last = server.requests
        assert [request.connection for request in (first, lost, again, last)] == [0, 0, 1, 1]
        assert (again.method, again.path, again.header_pairs) == (lost.method, lost.path, lost.header_pairs)


@own_transport
@both_ends
@pytest.mark.parametrize(
    ("method", "body"),
    [("POST", "data"), ("PUT", "data"), ("DELETE", None), ("GET", "an iterator")],
)
def test_unsafe_request_is_not_retried(ask: Requester, leave: Step, method: str, body: str | None) -> None:
    options: dict[str, Any] = {"data": {"data": {"prompt": "secret"}}, None: {}}.get(
        body, {"content": iter([b"secret"])}
    )
    with hostile(ask, closes_the_second(leave)) as server:
        assert ask(server.url).items() == [1]
        with pytest.raises(ReadError, match="kept from an earlier request") as caught:
            ask(server.url, method=method, **options)
        assert str(caught.value).endswith(f"the server may have processed this {method}, which is not sent again")
        assert caught.value.__cause__ is not None
        assert "secret" not in str(caught.value)
        assert len(server.requests) == 2


@own_transport
@both_ends
def test_request_is_retried_once(ask: Requester, leave: Step) -> None:
    with hostile(ask, closes_the_second(leave, times=2)) as server:
        assert ask(server.url).items() == [1]
        items, error = fail(ask, server.url)
        assert (items, type(error)) == ([], ReadError)
        assert [request.connection for request in server.requests] == [0, 0, 1]


def test_request_with_a_begun_response_is_not_retried(ask: Requester) -> None:
    with hostile(ask, closes_the_second(cut(), wire(b"H"))) as server:
        assert ask(server.url).items() == [1]
        items, error = fail(ask, server.url)
        assert (items, type(error)) == ([], ReadError)
        assert "kept" not in str(error)
        assert len(server.requests) == 2


def test_request_that_times_out_is_not_retried(clock: FakeClock, ask: Requester) -> None:
    with hostile(ask, closes_the_second(silence())) as server:
        assert ask(server.url).items() == [1]
        asking = in_thread(lambda: fail(ask, server.url, timeout={"connect": None, "read": 60}))
        until(lambda: len(server.requests) == 2)
        clock.advance_until(asking.done, step=10)
        items, error = asking.result()
        assert items == []
        assert isinstance(error, StreamTimeoutError)
        assert len(server.requests) == 2
