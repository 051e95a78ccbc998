"""A request is aborted from another thread, in every state that it can be in."""

from __future__ import annotations

import gc
import ssl
import threading
from collections.abc import Callable
from typing import Any

import httpx
import httpx2
import pytest

from sseqbridge import Bridge, BridgeTransport
from sseqbridge._engine.raw_exchange import RawExchange
from sseqbridge.testing import SSEServer, hold, raw, respond, send, silence
from tests.support import in_thread, is_waiting, python, until

ONE_THEN_SILENCE = [send("1"), silence()]


def lines_of(response: Any) -> list[str]:
    """Read a response to its end. Raises its error."""
    return [line for line in response.iter_lines() if line]


def test_closing_a_response_frees_a_blocked_reader(package: Any, client: Any) -> None:
    with SSEServer(ONE_THEN_SILENCE) as server, client.stream("GET", server.url) as response:
        reading = in_thread(lambda: lines_of(response))
        until(lambda: is_waiting(reading))
        response.close()
        error: Any = reading.exception(30)
        assert type(error) is package.ReadError
        assert error.request.url == server.url
        server.requests[0].wait_aborted()


def test_closing_a_response_over_tls_frees_a_blocked_reader(
    package: Any, new_client: Callable[..., Any], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    client = new_client(verify=client_tls)
    with SSEServer(ONE_THEN_SILENCE, ssl_context=server_tls) as server, client.stream("GET", server.url) as response:
        reading = in_thread(lambda: lines_of(response))
        until(lambda: is_waiting(reading))
        response.close()
        assert type(reading.exception(30)) is package.ReadError
        server.requests[0].wait_aborted()


def test_close_returns_when_the_socket_is_shut_down(client: Any) -> None:
    with SSEServer(ONE_THEN_SILENCE) as server:
        response = client.send(client.build_request("GET", server.url), stream=True)
        response.close()
        # Not later than close() returned, but for the server's own thread.
        server.requests[0].wait_aborted()
        response.close()


def test_leaving_the_block_of_a_stream_aborts_it(client: Any) -> None:
    with SSEServer(ONE_THEN_SILENCE) as server:
        with client.stream("GET", server.url) as response:
            assert next(response.iter_lines()) == "data: 1"
        server.requests[0].wait_aborted()


def test_leaving_a_loop_over_raw_bytes_aborts_the_request(client: Any) -> None:
    with SSEServer(ONE_THEN_SILENCE) as server:
        response = client.send(client.build_request("GET", server.url), stream=True)
        for _ in response.iter_raw():
            break
        server.requests[0].wait_aborted()
        response.close()


def test_dropping_a_response_aborts_the_request(client: Any) -> None:
    with SSEServer(ONE_THEN_SILENCE) as server:
        response = client.send(client.build_request("GET", server.url), stream=True)
        del response
        gc.collect()
        server.requests[0].wait_aborted()


@pytest.mark.parametrize("step", [[silence()], [respond(), silence()]], ids=["no head", "head"])
def test_closing_the_client_aborts_its_requests(package: Any, step: list[Any]) -> None:
    client = package.Client(transport=BridgeTransport(), timeout=None)
    with SSEServer(step) as server:
        asking = in_thread(lambda: client.get(server.url))
        until(lambda: is_waiting(asking) and server.requests)
        client.close()
        assert type(asking.exception(30)) is package.ReadError
        server.requests[0].wait_aborted()


def test_closing_the_bridge_aborts_its_requests(package: Any, new_client: Callable[..., Any]) -> None:
    bridge = Bridge()
    client = new_client(bridge=bridge)
    with SSEServer(lambda request: [silence()] if request.path == "/head" else ONE_THEN_SILENCE) as server:
        asking = in_thread(lambda: client.get(f"{server.url}/head"))
        reading = in_thread(lambda: client.get(f"{server.url}/body"))
        until(lambda: is_waiting(asking) and is_waiting(reading) and len(server.requests) == 2)
        bridge.close()
        for future in (asking, reading):
            assert type(future.exception(30)) is package.ReadError
            assert "bridge" in str(future.exception())
        for request in server.requests:
            request.wait_aborted()


def test_a_closed_transport_leaves_other_transports_alone(package: Any) -> None:
    go_on = threading.Event()
    with (
        SSEServer([send("1"), hold(go_on), send("2")]) as server,
        package.Client(transport=BridgeTransport()) as other,
        other.stream("GET", server.url) as response,
    ):
        lines = response.iter_lines()
        assert next(lines) == "data: 1"
        package.Client(transport=BridgeTransport()).close()
        go_on.set()
        assert [line for line in lines if line] == ["data: 2"]


def test_an_interrupt_in_the_wait_aborts_the_request(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with SSEServer(ONE_THEN_SILENCE) as server, client.stream("GET", server.url) as response:
        chunks = response.iter_raw()
        next(chunks)

        class Interrupted:
            """A waiter that Ctrl-C interrupts."""

            def wake(self) -> None:
                """Do nothing: nobody waits."""

            def wait(self, timeout: float | None) -> bool:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("sseqbridge._runtime.threads.new_waiter", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(chunks)
        server.requests[0].wait_aborted()


def test_a_closed_response_reports_what_the_package_reports(package: Any, client: Any) -> None:
    with SSEServer(ONE_THEN_SILENCE) as server:
        response = client.send(client.build_request("GET", server.url), stream=True)
        response.close()
        with pytest.raises(package.StreamClosed):
            next(response.iter_raw())


@pytest.mark.slow
def test_the_interpreter_exits_while_requests_wait(client: Any) -> None:
    with SSEServer(lambda request: [silence()] if request.path == "/head" else ONE_THEN_SILENCE) as server:
        status, _, _ = python(
            """if True:
            import httpx, sys, threading
            from sseqbridge import Bridge, BridgeTransport

            client = httpx.Client(transport=BridgeTransport(), timeout=None)
            for path in ("/head", "/body"):
                threading.Thread(target=client.get, args=(sys.argv[1] + path,), daemon=True).start()
            while Bridge.default().stats().bytes == 0:
                pass
            """,
            server.url,
        )
        assert status == 0
        for request in server.requests:
            request.wait_aborted()


def test_closing_after_the_last_event_keeps_the_connection(client: Any) -> None:
    ended = threading.Event()
    with SSEServer([send("1"), send("[DONE]"), hold(ended)]) as server:
        for number in range(1, 4):
            with client.stream("GET", server.url) as response:
                lines = response.iter_lines()
                while next(lines) != "data: [DONE]":
                    pass
                assert next(lines) == ""
            ended.set()
            until(server.requests[number - 1].finished.is_set)
            until(lambda: Bridge.default().stats().open_streams == 0)
        assert server.connections == 1
        assert server.aborted_requests == 0


@pytest.mark.parametrize(
    "last",
    [
        send('{"type":"message_stop"}', "message_stop"),
        send({"type": "response.completed", "response": {"output": "x" * 1000}}, "response.completed"),
        raw(b"data:[DONE]\r\n\r\n"),
    ],
)
def test_last_events_of_providers_keep_the_connection(client: Any, last: Any) -> None:
    ended = threading.Event()
    with SSEServer([send("1"), last, hold(ended)]) as server:
        for number in range(1, 3):
            with client.stream("GET", server.url) as response:
                text = ""
                for part in response.iter_text():
                    text += part
                    if text.replace("\r", "").count("\n\n") == 2:
                        break
            ended.set()
            until(server.requests[number - 1].finished.is_set)
            until(lambda: Bridge.default().stats().open_streams == 0)
        assert server.connections == 1


def test_endless_upstream_is_cut_after_its_last_event(clock: Any, client: Any) -> None:
    with SSEServer([send("[DONE]"), silence()]) as server:
        with client.stream("GET", server.url) as response:
            lines = response.iter_lines()
            assert [next(lines), next(lines)] == ["data: [DONE]", ""]
        clock.advance_until(server.requests[0].aborted.is_set)


def test_upstream_that_sends_on_is_cut_after_its_last_event(client: Any) -> None:
    closed = threading.Event()
    with SSEServer([send("[DONE]"), hold(closed), *[raw(b"x" * 10_000)] * 100, silence()]) as server:
        with client.stream("GET", server.url) as response:
            lines = response.iter_lines()
            assert [next(lines), next(lines)] == ["data: [DONE]", ""]
        closed.set()
        server.requests[0].wait_aborted()


def test_upstream_is_cut_after_its_last_event_before_idle(
    clock: Any, new_client: Callable[..., Any]
) -> None:
    client = new_client(idle=10_000)
    began = clock.monotonic()
    with SSEServer([send("[DONE]"), silence()]) as server:
        with client.stream("GET", server.url) as response:
            lines = response.iter_lines()
            assert [next(lines), next(lines)] == ["data: [DONE]", ""]
        clock.advance_until(server.requests[0].aborted.is_set)
    assert clock.monotonic() - began < 5_000


@pytest.mark.parametrize(("kind", "step"), [(Bridge, "check_may_wait"), (RawExchange, "notify_finished")])
def test_a_bridge_that_closes_during_the_call_sends_nothing(
    package: Any, monkeypatch: pytest.MonkeyPatch, kind: type, step: str
) -> None:
    """Before a client is leased, and before the request is started."""
    bridge = Bridge()
    transport = BridgeTransport(bridge=bridge)
    monkeypatch.setattr(kind, step, lambda *_, **__: bridge.close())
    with SSEServer([send("1")]) as server, package.Client(transport=transport) as client:
        with pytest.raises(package.ConnectError, match="the bridge was closed"):
            client.get(server.url)
        assert server.requests == []
    assert repr(transport) == "<BridgeTransport idle=None requests=0>"


def test_packages_are_distinguished_by_the_request() -> None:
    transport = BridgeTransport()
    with SSEServer([send("1")]) as server:
        for package in (httpx, httpx2):
            request: Any = package.Request("GET", server.url)
            response = transport.handle_request(request)
            assert isinstance(response, package.Response)
            assert isinstance(response.stream, package.SyncByteStream)
            response.read()
    with pytest.raises(httpx2.ConnectError):
        transport.handle_request(httpx2.Request("GET", server.url))
