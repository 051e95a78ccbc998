"""Bodies that the HTTP client itself reads, for an auth or an event hook, are bounded like those of error responses."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

from sseqbridge import (
    Bridge,
    CallbackError,
    ContentTypeError,
    ReconnectionError,
    ReconnectionPolicy,
    SSEError,
    Timeout,
    TransportError,
    arequest_sse,
    request_sse,
)
from sseqbridge._http.bounded_bodies import BODY_SECONDS, MAX_BODY_BYTES, MAX_REQUESTS
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, hold, raw, respond, send, silence
from tests.clock import FakeClock
from tests.requesters import Requester, Response
from tests.support import INTERFACES, in_thread, peak_rss, until

DONE = send("[DONE]")

CHALLENGE = {"WWW-Authenticate": 'Digest realm="r", nonce="n", qop="auth"'}

Send = Callable[..., Response]


class TokenAuth(httpx.Auth):
    """An auth from httpx's documentation: after a 401 it sends the request again, with the token in the 401's body.

    httpx reads each response completely before the flow receives it.
    """

    requires_response_body = True

    def __init__(self) -> None:
        self.seen: list[tuple[int, bytes]] = []

    def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        response = yield request
        self.seen.append((response.status_code, response.content))
        if response.status_code == 401:
            request.headers["Authorization"] = f"Bearer {response.content[:8].decode()}"
            response = yield request
            self.seen.append((response.status_code, response.content))


class Endless(httpx.Auth):
    def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        while True:
            yield request


def bomb() -> list[bytes]:
    """80 MB as 80 kB of gzip, without the end."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    # A full flush: the second part does not refer to the first one, so it can follow repeatedly.
    first, second = (compressor.compress(b"x" * 2**21) + compressor.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return [first] + 39 * [second]


BOMB = bomb()


def plain_bytes() -> list[bytes]:
    return [b"x" * 2**20] * 80


@contextmanager
def memory_is_bounded() -> Iterator[None]:
    """Fail if more than a few bodies of the largest size are in memory at the same time."""
    with contextlib.suppress(OSError):  # where there is no Linux
        # Restarts the measurement of the peak for each test.
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    before = peak_rss()
    yield
    assert peak_rss() - before < 40 * 2**20


def protected(refusal: list[Step], *response: Step) -> Callable[[ReceivedRequest], list[Step]]:
    """A script that responds with `refusal` to requests without Authorization, and with `response` to others."""
    return lambda request: list(response) if "authorization" in request.headers else refusal


REFUSALS = {
    "gzip": [respond(401, {**CHALLENGE, "Content-Encoding": "gzip"}), *map(raw, BOMB)],
    "plain": [respond(401, CHALLENGE), *map(raw, plain_bytes())],
    "unknown": [respond(401, {**CHALLENGE, "Content-Encoding": "br"}), *map(raw, plain_bytes())],
    "corrupt": [respond(401, {**CHALLENGE, "Content-Encoding": "gzip"}), raw(b"no gzip" * 1000), silence()],
}


@pytest.fixture(params=["own", "httpx", "httpx2"])
def request_with(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """request_sse with the library's client, and with a caller's."""
    if request.param == "own":
        yield request_sse
        return
    package: Any = {"httpx": httpx, "httpx2": httpx2}[request.param]
    with Bridge(client=package.AsyncClient) as bridge:
        yield lambda *args, **options: request_sse(*args, bridge=bridge, **options)


@pytest.fixture
def digest(request: pytest.FixtureRequest) -> Any:
    params = request.node.callspec.params
    return httpx2.DigestAuth("u", "p") if params.get("request_with") == "httpx2" else httpx.DigestAuth("u", "p")


# Auth flows.


@pytest.mark.slow
@pytest.mark.parametrize("refusal", REFUSALS)
def test_error_response_read_by_an_auth_is_bounded(request_with: Callable[..., Any], digest: Any, refusal: str) -> None:
    with SSEServer(protected(REFUSALS[refusal], send(1), DONE)) as server, memory_is_bounded():
        assert list(request_with(server.url, auth=digest, timeout=Timeout(read=60)).events) == [1]
        assert len(server.requests) == 2


def test_auth_of_a_client_is_bounded() -> None:
    with (
        SSEServer(protected(REFUSALS["gzip"], send(1), DONE)) as server,
        Bridge(client=lambda: httpx.AsyncClient(auth=httpx.DigestAuth("u", "p"))) as bridge,
        memory_is_bounded(),
    ):
        assert list(request_sse(server.url, bridge=bridge).events) == [1]


def test_auth_of_a_client_of_arequest_sse_is_bounded() -> None:
    async def main() -> list[Any]:
        async with httpx.AsyncClient(auth=httpx.DigestAuth("u", "p")) as client:
            _, _, events = await arequest_sse(server.url, client=client)
            return [item async for item in events]

    with SSEServer(protected(REFUSALS["gzip"], send(1), DONE)) as server, memory_is_bounded():
        assert asyncio.run(main()) == [1]


def test_error_response_that_ends_an_auth_flow_is_returned(ask: Requester) -> None:
    refused = [respond(401, CHALLENGE, content_type="application/json"), raw(b'{"a": 1}')]
    with SSEServer(refused) as server:
        response = ask(server.url, auth=httpx.DigestAuth("u", "p"))
        assert (response.status, response.items()) == (401, [{"a": 1}])
        # Each response was read to its end.
        assert (len(server.requests), server.connections) == (2, 1)


def test_stalled_error_response_is_cut_off_after_ten_seconds(clock: FakeClock, ask: Requester) -> None:
    refusal = [respond(401, CHALLENGE), raw(b"no"), silence()]
    with SSEServer(protected(refusal, send(1), DONE)) as server:
        began = clock.monotonic()
        auth, timeout = httpx.DigestAuth("u", "p"), Timeout(read=None, connect=None)
        asking = in_thread(lambda: ask(server.url, auth=auth, timeout=timeout))
        server.wait_for_request(timeout=30)
        response = clock.advance_until_done(asking.result)
        assert clock.monotonic() - began >= BODY_SECONDS
        assert response.items() == [1]


def test_auth_reads_error_responses_but_no_event_stream(ask: Requester) -> None:
    """An event stream may be endless, and must be delivered before it is read."""
    auth = TokenAuth()
    with SSEServer(protected([respond(401), raw(b"token678, more")], send(1), silence())) as server:
        with ask(server.url, auth=auth) as response:
            assert response.next() == 1
        assert auth.seen == [(401, b"token678, more"), (200, b"")]
        assert server.requests[1].headers["authorization"] == "Bearer token678"


def test_auth_reads_an_error_response_up_to_the_limit(ask: Requester) -> None:
    auth = TokenAuth()
    refusal = [respond(401, {"Content-Encoding": "gzip"}), *map(raw, BOMB)]
    with SSEServer(lambda request: refusal) as server, memory_is_bounded():
        response = ask(server.url, decode="text", auth=auth)
        _, error = response.fail()
        assert isinstance(error, SSEError)
        assert [status for status, _ in auth.seen] == [401, 401]
        assert all(MAX_BODY_BYTES <= len(body) <= 3 * MAX_BODY_BYTES for _, body in auth.seen)
        with pytest.raises(SSEError) as caught:
            response.raise_for_status()
        assert caught.value.body == b"x" * MAX_BODY_BYTES  # type: ignore[attr-defined]


def test_auth_reads_another_content_type_up_to_the_limit(ask: Requester) -> None:
    with SSEServer([respond(content_type="text/html"), *map(raw, plain_bytes())]) as server:
        with pytest.raises(ContentTypeError) as caught:
            ask(server.url, auth=TokenAuth())
        assert caught.value.body == b"x" * MAX_BODY_BYTES


def test_stream_that_an_auth_read_in_part_is_an_error(ask: Requester) -> None:
    steps = [respond(content_type="text/plain"), *map(raw, plain_bytes())]
    with SSEServer(steps) as server, pytest.raises(SSEError, match="must not read"):
        ask(server.url, auth=TokenAuth(), check_content_type=False)


def test_stream_that_an_auth_read_completely_is_delivered(ask: Requester) -> None:
    with SSEServer([respond(content_type="text/plain"), send(1), DONE]) as server:
        assert ask(server.url, auth=TokenAuth(), check_content_type=False).items() == [1]


def test_endless_auth_flow_is_a_callback_error(ask: Requester) -> None:
    with SSEServer([respond(401), raw(b"no")]) as server:
        with pytest.raises(CallbackError, match=f"at most {MAX_REQUESTS} requests"):
            ask(server.url, auth=Endless())
        assert len(server.requests) == MAX_REQUESTS


def test_auth_flow_that_is_endless_later_ends_the_stream(ask: Requester) -> None:
    class Later(httpx.Auth):
        def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            response = yield request
            while response.status_code != 200:
                response = yield request

    scripts = iter([[send(1), cut()]])
    with SSEServer(lambda request: next(scripts, [respond(503)])) as server:
        policy = ReconnectionPolicy(delay=0.01, jitter=0)
        items, error = ask(server.url, auth=Later(), reconnect=policy).fail()
        assert items == [1]
        assert isinstance(error, ReconnectionError)
        assert isinstance(error.__cause__, CallbackError)
        assert len(server.requests) == 1 + MAX_REQUESTS


@pytest.mark.parametrize(
    "error", [OSError(5, "no token file"), TimeoutError(), httpx.ConnectTimeout("a token's")], ids=repr
)
@pytest.mark.parametrize("kind", ["function", "before the request", "after the response"])
def test_error_of_an_auth_is_no_error_of_the_connection(ask: Requester, kind: str, error: Exception) -> None:
    """Which would be retried, or look like a time limit of the request."""

    def fails(request: Any) -> Any:
        raise error

    class Auth(httpx.Auth):
        def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            if kind == "after the response":
                yield request
            raise error

    with SSEServer([send("1"), DONE]) as server, pytest.raises(CallbackError, match="auth raised") as caught:
        ask(server.url, auth=fails if kind == "function" else Auth())
    assert caught.value.__cause__ is error


def test_broken_body_read_by_an_auth_is_a_connection_error(ask: Requester) -> None:
    with SSEServer([respond(401), raw(b"tok"), cut()]) as server, pytest.raises(TransportError):
        ask(server.url, auth=TokenAuth())


def test_auth_flow_is_closed_if_the_request_fails(ask: Requester) -> None:
    closed: list[bool] = []

    class Closed(httpx.Auth):
        def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            yield request

        async def async_auth_flow(self, request: Any) -> Any:
            try:
                yield request
            finally:
                closed.append(True)

    with SSEServer([cut()]) as server, pytest.raises(SSEError):
        ask(server.url, auth=Closed())
    assert closed == [True]


def test_body_read_by_hook_and_auth_is_bounded_once() -> None:
    async def on_response(response: httpx.Response) -> None:
        if response.status_code == 401:
            seen.append(len(await response.aread()))

    seen: list[int] = []
    auth = TokenAuth()
    refusal = [respond(401, {"Content-Encoding": "gzip"}), *map(raw, BOMB)]
    with (
        SSEServer(protected(refusal, send(1), DONE)) as server,
        Bridge(client=lambda: httpx.AsyncClient(auth=auth, event_hooks={"response": [on_response]})) as bridge,
        memory_is_bounded(),
    ):
        assert list(request_sse(server.url, bridge=bridge).events) == [1]
    [size] = seen
    assert MAX_BODY_BYTES <= size <= 3 * MAX_BODY_BYTES
    assert [(status, len(body)) for status, body in auth.seen] == [(401, size), (200, 0)]


# Event hooks.


def ask_with(make: Callable[[], httpx.AsyncClient], interface: str, url: str, **options: Any) -> None:
    """Send a request with a client of the caller's."""

    async def ask() -> None:
        async with make() as client:
            await arequest_sse(url, client=client, **options)

    if interface == "async":
        asyncio.run(ask())
        return
    with Bridge(client=make) as bridge:
        request_sse(url, bridge=bridge, **options)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize(
    "error",
    [OSError(5, "a full disk"), httpx.ConnectTimeout("a token's"), httpx.InvalidURL("a log's"), ValueError("a bug")],
    ids=repr,
)
@pytest.mark.parametrize("kind", ["request", "response", "trace"])
def test_error_of_a_hook_is_no_error_of_the_connection(interface: str, kind: str, error: Exception) -> None:
    async def fails(*_: Any) -> None:
        raise error

    hooks: dict[str, Any] = {} if kind == "trace" else {kind: [fails]}
    extensions = {"trace": fails} if kind == "trace" else {}
    make = partial(httpx.AsyncClient, event_hooks=hooks)
    with SSEServer([send("1"), DONE]) as server, pytest.raises(CallbackError, match=r"event hook|trace") as caught:
        ask_with(make, interface, server.url, extensions=extensions)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("interface", INTERFACES)
def test_broken_body_read_by_a_hook_is_a_connection_error(interface: str) -> None:
    async def reads(response: httpx.Response) -> None:
        await response.aread()

    make = partial(httpx.AsyncClient, event_hooks={"response": [reads]})
    with SSEServer([respond(401), raw(b"tok"), cut()]) as server, pytest.raises(TransportError):
        ask_with(make, interface, server.url)


@contextmanager
def reading_hook(package: Any, seen: list[bytes]) -> Iterator[Bridge]:
    async def on_response(response: Any) -> None:
        seen.append(await response.aread())

    with Bridge(client=lambda: package.AsyncClient(event_hooks={"response": [on_response]})) as bridge:
        yield bridge


@pytest.mark.parametrize("package", [httpx, httpx2], ids=["httpx", "httpx2"])
@pytest.mark.parametrize("refusal", ["gzip", "plain"])
def test_event_hook_reads_an_error_response_up_to_the_limit(package: Any, refusal: str) -> None:
    seen: list[bytes] = []
    with SSEServer(REFUSALS[refusal]) as server, reading_hook(package, seen) as bridge, memory_is_bounded():
        stream = request_sse(server.url, decode="text", bridge=bridge).events
        assert stream.status == 401
        with pytest.raises(SSEError) as caught:
            next(stream)
        assert len(caught.value.body) == MAX_BODY_BYTES  # type: ignore[attr-defined]
    [body] = seen
    assert MAX_BODY_BYTES <= len(body) <= 3 * MAX_BODY_BYTES


def test_event_hook_must_not_read_a_long_event_stream() -> None:
    """The hook gets a part, and the rest would be lost."""
    seen: list[bytes] = []
    with (
        SSEServer([respond(), *map(raw, plain_bytes())]) as server,
        reading_hook(httpx, seen) as bridge,
        pytest.raises(SSEError, match="must not read"),
    ):
        request_sse(server.url, bridge=bridge)


def test_event_hook_may_wait_for_an_event_stream(clock: FakeClock) -> None:
    """Within the time limits of the stream, and no event is lost."""
    seen: list[bytes] = []
    flag = threading.Event()
    steps = [send(1), hold(flag), DONE]
    with SSEServer(steps) as server, reading_hook(httpx, seen) as bridge:
        asking = in_thread(lambda: request_sse(server.url, bridge=bridge))
        server.wait_for_request(timeout=30)
        until(lambda: server.requests[0].sent_bytes)
        clock.advance(2 * BODY_SECONDS)
        flag.set()
        assert list(asking.result(30).events) == [1]


@pytest.mark.parametrize("kind", ["request", "response"])
def test_hook_that_is_added_after_the_first_request_is_guarded(kind: str) -> None:
    """A function that returns the same client each time may also change it."""
    error = OSError(5, "a full disk")
    client = httpx.AsyncClient()

    async def fails(_: Any) -> None:
        raise error

    with SSEServer([DONE]) as server, Bridge(client=lambda: client) as bridge:
        assert list(request_sse(server.url, bridge=bridge).events) == []
        client.event_hooks[kind].append(fails)
        with pytest.raises(CallbackError, match="event hook") as caught:
            request_sse(server.url, bridge=bridge)
        assert caught.value.__cause__ is error
        assert client.event_hooks == {"request": [], "response": [], kind: [fails]}
        client.event_hooks[kind].remove(fails)
        assert list(request_sse(server.url, bridge=bridge).events) == []


async def body() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b""
        yield b"x" * 2**19


def test_body_of_a_mock_transport_is_bounded() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(401 if "authorization" not in request.headers else 403, headers=CHALLENGE, content=body())

    with Bridge(client=lambda: httpx.AsyncClient(transport=httpx.MockTransport(handler))) as bridge:
        stream = request_sse("http://mock.test/", auth=httpx.DigestAuth("u", "p"), bridge=bridge).events
        assert (stream.status, next(stream)) == (403, "x" * MAX_BODY_BYTES)
