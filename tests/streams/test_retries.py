"""SSEClient(retries=): the first answer is retried; and the pause that the calls of a gather share."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from sseqbridge import (
    Bridge,
    ConnectError,
    ContentTypeError,
    ReadError,
    ReconnectionPolicy,
    SSEClient,
    StatusError,
    StreamTimeoutError,
    Timeout,
    TruncatedStreamError,
    UsageError,
    amerge,
    gather,
    merge,
    request_sse,
)
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, in_turn, raw, respond, send, silence
from tests.clock import FakeClock
from tests.engine.reconnecting import UNLIMITED
from tests.streams.async_support import Run
from tests.streams.client_support import ClientRequester
from tests.support import in_thread, is_waiting, together, until, until_no_stream_is_open

DONE = send("[DONE]")
GOOD = [send(1), DONE]


def refusal(status: int, headers: dict[str, str] | None = None, body: bytes = b"no") -> list[Step]:
    """With a length, so that the connection can be reused at once."""
    return [respond(status, headers or {}, content_type="text/plain", framing="length"), raw(body)]


def client_of(server: SSEServer, retries: int = 2, **options: Any) -> SSEClient[Any]:
    return SSEClient(server.url, retries=retries, **{"timeout": UNLIMITED, **options})


class Asking:
    """Sends requests while the clock advances, so that no delay is waited for."""

    def __init__(self, clock: FakeClock, send_with: ClientRequester) -> None:
        self._clock = clock
        self._send_with = send_with

    def __call__(self, client: SSEClient[Any], url: str = "/", **options: Any) -> Any:
        asking = in_thread(lambda: self._send_with(client, url, **options))
        self._clock.advance_until(asking.done, step=0.5)
        return asking.result()


@pytest.fixture
def ask(clock: FakeClock, send_with: ClientRequester) -> Asking:
    return Asking(clock, send_with)


@pytest.mark.slow
@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_first_answer_is_retried(ask: Asking, status: int) -> None:
    with SSEServer(in_turn(refusal(status), refusal(503), GOOD)) as server:
        response = ask(client_of(server), data={"a": 1})
        assert response.status == 200
        assert response.items() == [1]
        assert response.events.stats.reconnections == 0
        assert [request.json() for request in server.requests] == [{"a": 1}] * 3


def test_last_answer_is_returned_with_its_body(ask: Asking) -> None:
    with SSEServer(in_turn(refusal(503), refusal(429, body=b"the last"))) as server:
        response = ask(client_of(server))
        assert (response.status, response.items()) == (429, ["the last"])
        assert len(server.requests) == 3


def test_other_answers_are_not_retried(ask: Asking) -> None:
    with SSEServer(in_turn(refusal(401), [respond(200, content_type="text/html"), raw(b"<html>")])) as server:
        response = ask(client_of(server))
        assert (response.status, response.items()) == (401, ["no"])
        with pytest.raises(ContentTypeError):
            ask(client_of(server))
        assert len(server.requests) == 2


def test_no_retries_by_default(ask: Asking) -> None:
    with SSEServer([respond(503)]) as server:
        assert ask(SSEClient(server.url)).status == 503
        assert ask(client_of(server).with_options(retries=0)).status == 503
        assert len(server.requests) == 2


def test_refused_connection_is_retried(ask: Asking, closed_port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sseqbridge")
    client = SSEClient(f"http://127.0.0.1:{closed_port}/x?key=secret".partition("?")[0], retries=2)
    with pytest.raises(ConnectError):
        ask(client, "/?key=secret")
    retries = [record.getMessage() for record in caplog.records if "retry" in record.getMessage()]
    assert [message.partition(" in ")[0] for message in retries] == [
        f"http://127.0.0.1:{closed_port}/x/: retry {n}" for n in (1, 2)
    ]
    assert all(message.endswith(" s, after ConnectError") for message in retries)


def test_lost_connection_of_a_sent_request_is_not_retried(ask: Asking) -> None:
    with SSEServer([cut()]) as server:
        with pytest.raises(ReadError):
            ask(client_of(server), data={})
        assert len(server.requests) == 1


@pytest.mark.slow
def test_timeout_of_a_sent_request_is_not_retried(clock: FakeClock, ask: Asking) -> None:
    with SSEServer([silence()]) as server:
        with pytest.raises(StreamTimeoutError) as caught:
            ask(client_of(server, timeout=Timeout(connect=None, read=30)))
        assert caught.value.which == "read"
        # The server may receive it later.
        server.wait_for_request().wait_aborted()
        assert len(server.requests) == 1


def test_errors_in_mid_stream_keep_their_types(ask: Asking) -> None:
    with SSEServer(in_turn(refusal(503), [send(1), cut()])) as server:
        response = ask(client_of(server), data={})
        items, error = response.fail()
        assert items == [1]
        assert type(error) is TruncatedStreamError
        assert len(server.requests) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("retry_after", "delay"), [("20", 20.0), ("120", 120.0), ("0", 0.375), ("soon", 0.375)])
def test_retry_after_is_waited_for(clock: FakeClock, ask: Asking, retry_after: str, delay: float) -> None:
    times: list[float] = []

    def script(request: ReceivedRequest) -> list[Step]:
        times.append(clock.monotonic())
        return GOOD if len(times) > 1 else refusal(429, {"Retry-After": retry_after})

    with SSEServer(script) as server:
        assert ask(client_of(server)).items() == [1]
    assert times[1] - times[0] >= delay


def test_answer_with_a_long_retry_after_is_returned(ask: Asking) -> None:
    with SSEServer(refusal(429, {"Retry-After": "121"})) as server:
        assert ask(client_of(server)).status == 429
        assert len(server.requests) == 1


def test_retry_beyond_the_total_limit_is_not_waited_for(ask: Asking) -> None:
    with SSEServer(refusal(429, {"Retry-After": "100"})) as server:
        client = client_of(server, timeout=Timeout(connect=None, read=None, total=90))
        response = ask(client)
        assert response.status == 429
        assert len(server.requests) == 1


def test_cancel_flag_ends_the_wait(send_with: ClientRequester) -> None:
    flag = threading.Event()
    with SSEServer(refusal(429, {"Retry-After": "100"})) as server:

        def set_flag() -> None:
            server.wait_for_request()
            server.requests[0].finished.wait(30)
            flag.set()

        setting = in_thread(set_flag)
        with pytest.raises(Exception, match="cancel was set"):
            send_with(client_of(server), "/", cancel=flag)
        setting.result(30)
        assert len(server.requests) == 1


def test_headers_function_is_called_for_each_retry(ask: Asking) -> None:
    tokens = iter(range(1, 9))
    with SSEServer(in_turn(refusal(503), refusal(503), GOOD)) as server:
        client = client_of(server, headers=lambda: {"Authorization": f"Bearer {next(tokens)}"})
        assert ask(client).items() == [1]
        assert [request.headers["authorization"] for request in server.requests] == [f"Bearer {n}" for n in (1, 2, 3)]


def test_failing_headers_function_ends_the_retries(ask: Asking) -> None:
    tokens = iter(["1"])
    with SSEServer(refusal(503)) as server:
        client = client_of(server, headers=lambda: {"X-Token": next(tokens)})
        with pytest.raises(Exception, match="the headers function raised StopIteration"):
            ask(client)
        assert len(server.requests) == 1


def test_cookies_of_an_answer_are_sent_with_the_retry(ask: Asking) -> None:
    with SSEServer(in_turn(refusal(503, {"Set-Cookie": "a=1"}), GOOD)) as server:
        ask(client_of(server)).close()
        assert [request.headers.get("cookie") for request in server.requests] == [None, "a=1"]


def test_permanent_redirect_is_followed_at_once_by_the_retry(ask: Asking) -> None:
    def script(request: ReceivedRequest) -> list[Step]:
        if request.path == "/":
            return [respond(308, {"Location": "/new"})]
        return GOOD if len(server.requests) > 2 else refusal(503)

    with SSEServer(script) as server:
        assert ask(client_of(server), data={}).items() == [1]
        assert [request.path for request in server.requests] == ["/", "/new", "/new"]


@pytest.mark.slow
def test_retry_after_a_redirect_uses_the_first_origins_client(ask: Asking) -> None:
    """The clients of a bridge's client function belong to one origin each."""
    with SSEServer(lambda request: refusal(503) if not retried else GOOD) as other:
        retried: list[int] = []

        def script(request: ReceivedRequest) -> list[Step]:
            if server.requests[0] is not request:
                retried.append(1)
            return [respond(307, {"Location": other.url})]

        with SSEServer(script) as server, Bridge(client=httpx.AsyncClient) as bridge:
            assert ask(client_of(server, bridge=bridge)).items() == [1]
            assert (len(server.requests), len(other.requests)) == (2, 2)


def test_retries_with_an_auth(ask: Asking) -> None:
    with SSEServer(in_turn(refusal(503), GOOD)) as server:
        assert ask(client_of(server, auth=("user", "pw"))).items() == [1]
        assert len({request.headers["authorization"] for request in server.requests}) == 1


@pytest.mark.parametrize("options", [{"content": iter([b"x"])}, {"files": {"a": io.BytesIO(b"x")}}])
def test_body_that_can_be_read_once_is_a_usage_error(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"the body must be readable again for `retries`.*with_options\(retries=0\)"):
        SSEClient("http://h", retries=1).request("/", **options)


def test_reconnect_is_a_usage_error(send_with: ClientRequester) -> None:
    with pytest.raises(UsageError, match="`retries` must not come with `reconnect`"):
        send_with(SSEClient("http://h", retries=1), "/", reconnect=True)


@pytest.mark.parametrize("status", [302, 303])
@pytest.mark.parametrize("failure", ["refused", "503"])
def test_request_whose_result_fails_is_not_sent_again(ask: ClientRequester, status: int, failure: str) -> None:
    """The redirect says that the request was processed."""
    with SSEServer() as server:
        location = "http://127.0.0.1:9/" if failure == "refused" else "/result"
        redirect = [respond(status, {"Location": location}, framing="length")]
        server.play(lambda request: redirect if request.path == "/" else refusal(503))
        for options in ({"retries": 2}, {"reconnect": ReconnectionPolicy(delay=0.01, attempts=2)}):
            client = SSEClient(server.url, follow_redirects=True, timeout=UNLIMITED, **options)
            if failure == "refused":
                with pytest.raises(ConnectError):
                    ask(client, "/", data={"pay": 1})
            else:
                assert ask(client, "/", data={"pay": 1}).status == 503
    methods = [request.method for request in server.requests]
    assert methods == (["POST"] if failure == "refused" else ["POST", "GET"]) * 2


# Many streams.


def test_merged_calls_are_retried(clock: FakeClock, run: Run) -> None:
    with SSEServer(in_turn(*[refusal(503)] * 2, GOOD)) as server:
        call = client_of(server).call("/")
        assert clock.advance_until_done(lambda: dict(merge([call, call])), step=0.5) == {0: 1, 1: 1}
    with SSEServer(in_turn(*[refusal(503)] * 2, GOOD)) as server:
        call = client_of(server).call("/")

        async def collect() -> dict[int, Any]:
            async with amerge([call, call]) as merged:
                return {name: item async for name, item in merged}

        # The clock advances in the loop's thread: uvloop's end is not thread-safe.
        assert run(lambda: clock.aadvance_until_done(collect(), step=0.5)) == {0: 1, 1: 1}


def test_start_of_a_log_is_retried(clock: FakeClock) -> None:
    with SSEServer(in_turn(refusal(503), GOOD)) as server, MemoryLog() as log:
        call = client_of(server).call("/")
        assert clock.advance_until_done(lambda: log.open("key", start=call).collect(), step=0.5) == [1]


class Limited:
    """Refuses the first request with a Retry-After, and records when requests arrive."""

    def __init__(self, clock: FakeClock, retry_after: str, refused: int = 1) -> None:
        self._clock = clock
        self._retry_after = retry_after
        self._refused = refused
        self.times: list[float] = []

    def __call__(self, request: ReceivedRequest) -> Iterator[Step]:
        self.times.append(self._clock.monotonic())
        if len(self.times) <= self._refused:
            yield from refusal(429, {"Retry-After": self._retry_after})
        else:
            yield from GOOD


@pytest.mark.slow
def test_pause_holds_on_a_reused_connection(clock: FakeClock) -> None:
    limited = Limited(clock, "60")
    with Bridge() as bridge, SSEServer(lambda request: GOOD if request.path == "/" else limited(request)) as server:
        client = client_of(server, 0, bridge=bridge)
        # An idle connection each for the two calls.
        call = client.call("/")
        together([lambda: call().events.collect()] * 2)  # noqa: PLW0108 (each sends a request)
        until_no_stream_is_open(bridge)
        gathering = gather([client.call("/limited")] * 2, limit=1, errors="yield")
        assert isinstance(next(gathering)[1], StatusError)
        reading = in_thread(lambda: next(gathering))
        # Before the idle connections expire.
        until(lambda: is_waiting(reading))
        clock.advance_until(reading.done)
        assert reading.result() == (1, [1])
        assert list(gathering) == []
    assert limited.times[1] - limited.times[0] >= 60


def test_headers_after_a_pause_are_new(clock: FakeClock) -> None:
    made: list[float] = []

    def headers() -> dict[str, str]:
        made.append(clock.monotonic())
        return {}

    limited = Limited(clock, "60")
    with SSEServer(limited) as server:
        call = client_of(server, 0, headers=headers).call("/")
        results = clock.advance_until_done(lambda: list(gather([call] * 2, limit=1, errors="yield")))
        assert results[1] == (1, [1])
    assert made[-1] - limited.times[0] >= 60


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["call", "function", "partial"])
def test_calls_of_a_gather_share_the_pause_after_a_429(clock: FakeClock, kind: str) -> None:
    limited = Limited(clock, "60")
    with SSEServer(limited) as server:
        client = client_of(server, retries=0)
        call: Any = {
            "call": client.call("/"),
            "function": lambda: client.request("/"),
            "partial": partial(request_sse, server.url, timeout=UNLIMITED),
        }[kind]
        results = clock.advance_until_done(lambda: list(gather([call] * 5, limit=1, errors="yield")), step=1)
    assert [name for name, _ in results] == list(range(5))
    assert isinstance(results[0][1], StatusError)
    assert [items for _, items in results[1:]] == [[1]] * 4
    assert all(time - limited.times[0] >= 60 for time in limited.times[1:])


def test_call_of_a_gather_is_repeated_after_the_pause(clock: FakeClock) -> None:
    limited = Limited(clock, "60")
    with SSEServer(limited) as server:
        call = client_of(server, retries=1).call("/")
        results = clock.advance_until_done(lambda: list(gather([call] * 2, errors="yield")), step=1)
    assert results == [(0, [1]), (1, [1])]
    assert limited.times[-1] - limited.times[0] >= 60


@pytest.mark.slow
def test_pause_is_that_of_one_host(clock: FakeClock) -> None:
    limited, other = Limited(clock, "100"), Limited(clock, "100", refused=0)
    with SSEServer(limited) as server, SSEServer(other) as other_server:
        calls = [client_of(server).call("/"), *[client_of(other_server).call("/")] * 3]
        gathering = gather(calls, limit=2, in_order=False)
        assert [next(gathering)[0] for _ in range(3)] == [1, 2, 3]
        server.wait_for_request()
        assert clock.advance_until_done(lambda: list(gathering), step=1) == [(0, [1])]
    assert limited.times[1] - limited.times[0] >= 100


def test_long_retry_after_pauses_nothing(clock: FakeClock) -> None:
    with SSEServer(Limited(clock, "3600")) as server:
        results = dict(gather([client_of(server).call("/")] * 3, limit=1, errors="yield"))
    assert isinstance(results[0], StatusError)
    assert (results[1], results[2]) == ([1], [1])


def test_end_of_a_gather_ends_the_pause(clock: FakeClock) -> None:
    """And what waits for it is not sent."""
    with SSEServer(Limited(clock, "100", refused=9)) as server, SSEServer(GOOD) as other:
        refused = client_of(server).call("/")
        gathering: Any = gather([refused, client_of(other).call("/"), refused], limit=2, in_order=False)
        assert next(gathering) == (1, [1])
        server.wait_for_request()
        gathering.close()
        assert len(server.requests) <= 2
