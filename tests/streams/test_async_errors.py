"""arequest_sse: errors, time limits and error responses."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from sseqbridge import (
    CallbackError,
    ConnectError,
    ContentTypeError,
    DecodeError,
    ProtocolError,
    ReadError,
    RedirectError,
    SSEError,
    StatusError,
    StreamTimeoutError,
    Timeout,
    TruncatedStreamError,
    UpstreamError,
    UsageError,
    arequest_sse,
)
from sseqbridge.testing import (
    SSEServer,
    Step,
    cut,
    hold,
    raw,
    reset,
    respond,
    send,
    silence,
    wire,
)
from tests.clock import FakeClock
from tests.streams.async_support import Run, aborted, until


@pytest.mark.parametrize(
    ("timeout", "which"),
    [
        (Timeout(read=60), "read"),
        (60, "read"),
        ({"idle": 60, "read": None}, "idle"),
        (Timeout(total=60, read=None), "total"),
    ],
)
def test_time_limits_hold(clock: FakeClock, run: Run, timeout: Any, which: str) -> None:
    async def main() -> None:
        with SSEServer([send(1), silence()]) as server:
            _, _, items = await arequest_sse(server.url, timeout=timeout)
            assert await items.next() == 1
            for _ in range(2):
                with pytest.raises(StreamTimeoutError) as caught:
                    await clock.aadvance_until_done(items.next(), step=10)
                assert caught.value.which == which
            assert items.outcome == "error"
            assert await aborted(server.requests[0])
            await items.aclose()

    run(main)


def test_time_limits_hold_before_the_headers(clock: FakeClock, run: Run) -> None:
    async def main() -> None:
        with SSEServer(lambda request: [silence()]) as server:
            total, read = Timeout(connect=None, read=None, total=60), Timeout(connect=None, read=60)
            for limits, which in ((total, "total"), (read, "read")):
                with pytest.raises(StreamTimeoutError) as caught:
                    asking = arequest_sse(server.url, timeout=limits)
                    await clock.aadvance_until_done(asking, step=10)
                assert caught.value.which == which

    run(main)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([wire(b"SMTP ready\r\n\r\n"), silence()], ProtocolError),
        ([cut()], ReadError),
        ([reset()], ReadError),
        ([respond(content_type="text/html"), raw(b"<p>")], ContentTypeError),
        ([respond(302, {"Location": "/other"})], RedirectError),
        ([respond(307, {"Location": "http://127.0.0.2:1/"})], RedirectError),
    ],
)
def test_errors_before_the_headers_are_raised_by_the_call(run: Run, steps: list[Step], kind: type[SSEError]) -> None:
    async def main() -> None:
        with SSEServer(steps) as server:
            with pytest.raises(SSEError) as caught:
                await arequest_sse(server.url, None, {"a": 1})
            assert type(caught.value) is kind

    run(main)


def test_a_refused_connection_is_a_connect_error(run: Run, closed_port: int) -> None:
    async def main() -> None:
        with pytest.raises(ConnectError) as caught:
            await arequest_sse(f"http://127.0.0.1:{closed_port}/path?key=secret")
        assert isinstance(caught.value.__cause__, httpx.ConnectError)
        assert "secret" not in str(caught.value)

    run(main)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "options", "kind"),
    [
        ([cut()], {}, TruncatedStreamError),
        ([reset()], {}, ReadError),
        ([wire(b"no chunk\r\n"), silence()], {}, ProtocolError),
        ([], {"require_done": True}, TruncatedStreamError),
        ([send("not JSON")], {}, DecodeError),
        ([send({"error": {"message": "busy"}})], {}, UpstreamError),
        ([send(2), silence()], {"done": lambda event: {}[event.data]}, CallbackError),
        ([send(2), silence()], {"decode": lambda event: 1 // (2 - int(event.data))}, DecodeError),
    ],
)
def test_errors_in_the_stream_are_raised_after_earlier_items(
    run: Run, steps: list[Step], options: dict[str, Any], kind: type[SSEError]
) -> None:
    async def main() -> None:
        seen_one = threading.Event()
        first = [] if "done" in options else [send(1), hold(seen_one)]
        with SSEServer([*first, *steps]) as server:
            _, _, items = await arequest_sse(server.url, **options)
            if first:
                assert await items.next() == 1
                seen_one.set()
            for _ in range(2):
                with pytest.raises(SSEError) as caught:
                    await items.next(timeout=30)
                assert type(caught.value) is kind
            assert items.outcome == "error"
            await items.aclose()
            await until(server.requests[0].finished.is_set)

    run(main)


def test_wrong_arguments_raise_usage_error(run: Run) -> None:
    async def main() -> None:
        with SSEServer() as server:
            url: Any
            for url, options in (
                ("ftp://127.0.0.1/", {}),
                (7, {}),
                (server.url, {"data": "text"}),
                (server.url, {"data": {}, "content": b""}),
                (server.url, {"timeout": -1}),
                (server.url, {"decode": "xml"}),
                (server.url, {"client": object()}),
                (server.url, {"client": httpx.Client}),
            ):
                with pytest.raises(UsageError):
                    await arequest_sse(url, **options)
            assert server.requests == []

    run(main)


def test_body_of_an_error_response_is_the_only_item(run: Run) -> None:
    async def main() -> None:
        for body, expected in ((b'{"code": 7}', [{"code": 7}]), (b"<p>no", ["<p>no"]), (b"", [])):
            with SSEServer([respond(502, content_type=None), raw(body)]) as server:
                status, _, items = await arequest_sse(server.url)
                assert status == 502
                assert [item async for item in items] == expected
                assert items.outcome == "eof"

    run(main)


@pytest.mark.parametrize("decode", ["json", "text"])
@pytest.mark.parametrize("on_stream", [True, False])
def test_raise_for_status_is_awaited(run: Run, decode: Any, on_stream: bool) -> None:
    async def main() -> None:
        with SSEServer([respond(429, {"Retry-After": "3"}, content_type="text/plain"), raw(b"slowly")]) as server:
            response = await arequest_sse(server.url, decode=decode)
            for _ in range(2):
                with pytest.raises(StatusError) as caught:
                    await (response.events if on_stream else response).raise_for_status()
                assert (caught.value.status, caught.value.body) == (429, b"slowly")
                assert caught.value.headers["retry-after"] == "3"

    run(main)


def test_raise_for_status_returns_its_object(run: Run) -> None:
    async def main() -> None:
        with SSEServer([send(1), send("[DONE]")]) as server:
            response = await (await arequest_sse(server.url)).raise_for_status()
            assert await response.events.raise_for_status() is response.events
            assert [item async for item in response.events] == [1]
        with SSEServer([respond(204)]) as server:
            response = await (await arequest_sse(server.url)).raise_for_status()
            assert response.status == 204
            assert [item async for item in response.events] == []

    run(main)


def test_text_mode_raises_status_error_at_the_first_item(run: Run) -> None:
    async def main() -> None:
        with SSEServer([respond(404, content_type="text/plain"), raw(b"gone")]) as server:
            status, _, items = await arequest_sse(server.url, decode="text")
            assert status == 404
            for _ in range(2):
                with pytest.raises(StatusError, match="404 Not Found") as caught:
                    await items.next()
                assert caught.value.text == "gone"

    run(main)
