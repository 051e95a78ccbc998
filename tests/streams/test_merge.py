"""merge and amerge: many streams read in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from sseqbridge import (
    AsyncMergedStreams,
    ConnectError,
    ReconnectionPolicy,
    RequestAbortedError,
    SSEClient,
    StatusError,
    TruncatedStreamError,
    UsageError,
    amerge,
    arequest_sse,
    gather,
    merge,
    request_sse,
)
from sseqbridge._runtime import fork
from sseqbridge._streams.merger import Member
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, hold, respond, send, silence, wait
from tests.support import HAS_OWN_TRANSPORT, in_thread, is_waiting, polled, together, until

pytestmark = pytest.mark.configurations("default", "plain")

DONE = send("[DONE]")


# The fixed charge of an event, in addition to its text. (Events are counted before they can be read.)
CHARGE = 256


def by_path(scripts: dict[str, list[Step]]) -> Callable[[ReceivedRequest], list[Step]]:
    return lambda request: scripts[request.path]


def call(server: SSEServer, path: str = "/", **options: Any) -> partial[Any]:
    return partial(request_sse, f"{server.url}{path}", **options)


class Merging:
    """Calls merge, or amerge on a new loop, with calls or with open streams."""

    def __init__(self, *, is_async: bool) -> None:
        self.is_async = is_async
        self.request = arequest_sse if is_async else request_sse

    def call(self, server: SSEServer, path: str = "/", **options: Any) -> partial[Any]:
        return partial(self.request, f"{server.url}{path}", **options)

    def items(
        self,
        streams: Any,
        *,
        opened: bool = False,
        most: int | None = None,
        seen: Callable[[Any], object] = id,
        **options: Any,
    ) -> list[Any]:
        """Return the items of the streams, or the first `most`. With `opened` the streams are opened first.

        `seen` is called with each item.
        """
        return (
            asyncio.run(self._aitems(streams, opened, most, seen, options))
            if self.is_async
            else self._items(streams, opened, most, seen, options)
        )

    def _items(
        self, streams: Any, opened: bool, most: int | None, seen: Callable[[Any], object], options: Any
    ) -> list[Any]:
        found = []
        if opened:
            streams = {name: call() for name, call in streams.items()}
        for named in merge(streams, **options):
            found.append(named)
            seen(named[1])
            if len(found) == most or named[1] == "last":
                break
        return found

    async def _aitems(
        self, streams: Any, opened: bool, most: int | None, seen: Callable[[Any], object], options: Any
    ) -> list[Any]:
        found = []
        if opened:
            streams = {name: await call() for name, call in streams.items()}
        async with amerge(streams, **options) as merged:
            async for named in merged:
                found.append(named)
                seen(named[1])
                if len(found) == most or named[1] == "last":
                    break
        return found


@pytest.fixture(params=["merge", "amerge"])
def merging(request: pytest.FixtureRequest) -> Merging:
    return Merging(is_async=request.param == "amerge")


@pytest.mark.parametrize("opened", [False, True], ids=["sent together", "opened before"])
def test_items_have_their_streams_name_in_order_of_arrival(merging: Merging, opened: bool) -> None:
    # Each item is sent after the previous one was received.
    received = {item: threading.Event() for item in ("a1", "b1", "a2", "b2")}
    scripts = {
        "/a": [send("a1"), hold(received["b1"]), send("a2"), hold(received["b2"]), DONE],
        "/b": [respond(), hold(received["a1"]), send("b1"), hold(received["a2"]), send("b2"), DONE],
    }
    with SSEServer(by_path(scripts)) as server:
        streams = {name: merging.call(server, f"/{name}", decode="text") for name in "ab"}
        assert merging.items(streams, opened=opened, seen=lambda item: received[item].set()) == [
            ("a", "a1"),
            ("b", "b1"),
            ("a", "a2"),
            ("b", "b2"),
        ]


def test_names_of_an_iterable_are_numbers(merging: Merging) -> None:
    with SSEServer([send(1), DONE]) as server:
        assert sorted(merging.items(merging.call(server) for _ in range(3))) == [(0, 1), (1, 1), (2, 1)]


def test_merge_of_no_streams_is_empty(merging: Merging) -> None:
    assert merging.items([]) == []


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_a_thousand_streams_in_one_thread(merging: Merging) -> None:
    go = threading.Event()
    threads: set[str] = set()

    def seen(count: int) -> bool:
        threads.update(thread.name for thread in threading.enumerate())
        return len(server.requests) == count

    with SSEServer([send(1), hold(go), send(2), DONE]) as server:
        # httpx's own pool is slow with so many connections.
        count = 1000 if HAS_OWN_TRANSPORT else 200
        reading = in_thread(lambda: merging.items([merging.call(server)] * count))
        until(lambda: seen(count), 120)
        go.set()
        items = reading.result(30)
    assert Counter(item for _, item in items) == {1: count, 2: count}
    # But the process's own thread for asynchronous code, which the tests share.
    own = [name for name in threads if name.startswith("sseqbridge") and not name.endswith(("-tls", "-async"))]
    assert own in ([], ["sseqbridge-loop"])


def test_error_names_its_stream_and_aborts_the_others(merging: Merging) -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        if request.path == "/good":
            good_received.set()
            yield from (send(1), silence())
        yield from (respond(), hold(good_received), send(1), cut())

    good_received = threading.Event()
    with SSEServer(script) as server:
        with pytest.raises(TruncatedStreamError) as caught:
            merging.items({name: merging.call(server, f"/{name}") for name in ("good", "bad")})
        assert caught.value.stream_name == "bad"
        next(request for request in server.requests if request.path == "/good").wait_aborted()


def test_error_can_be_an_item_while_the_others_continue(merging: Merging) -> None:
    errors_received = threading.Event()
    scripts = {
        "/good": [send(1), hold(errors_received), send(2), DONE],
        "/bad": [send(1), cut()],
        "/busy": [respond(503, content_type="text/plain"), b"busy"],
    }
    with SSEServer(by_path(scripts)) as server:
        streams = {name: merging.call(server, f"/{name}") for name in ("good", "bad", "busy")}
        gone = SSEServer([DONE]).start()
        gone.close()
        streams["gone"] = merging.call(gone)
        errors = []

        def seen(item: Any) -> None:
            if isinstance(item, Exception):
                errors.append(item)
            if len(errors) == 3:
                errors_received.set()

        items = merging.items(streams, errors="yield", seen=seen)
    assert items[-1] == ("good", 2)
    found: dict[str, Any] = {name: item for name, item in items if isinstance(item, Exception)}
    assert {name: type(error) for name, error in found.items()} == {
        "bad": TruncatedStreamError,
        "busy": StatusError,
        "gone": ConnectError,
    }
    assert found["busy"].body == b"busy"
    assert all(error.stream_name == name for name, error in found.items())
    assert [(name, item) for name, item in items if item == 1] in (
        [("good", 1), ("bad", 1)],
        [("bad", 1), ("good", 1)],
    )


def test_refusal_of_an_open_stream_is_an_item(merging: Merging) -> None:
    with SSEServer([respond(503, content_type="text/plain"), b"busy"]) as server:
        assert merging.items({"a": merging.call(server)}, opened=True) == [("a", "busy")]


def test_refusal_with_a_slow_body_has_the_whole_body(merging: Merging) -> None:
    with SSEServer([respond(503, content_type="text/plain"), b"bu", wait(0.05), b"sy"]) as server:
        [(_, error)] = merging.items({"a": merging.call(server)}, errors="yield")
    assert isinstance(error, StatusError)
    assert error.body == b"busy"


def test_refusal_with_an_incomplete_body_has_its_status(merging: Merging) -> None:
    with SSEServer([respond(503, content_type="text/plain"), b"bu", cut()]) as server:
        [(_, error)] = merging.items({"a": merging.call(server)}, errors="yield")
    assert isinstance(error, StatusError)


def test_leaving_the_loop_aborts_all_open_streams(merging: Merging) -> None:
    scripts = {"/a": [send(1), silence()], "/b": [respond(), silence()], "/c": [silence()]}
    with SSEServer(by_path(scripts)) as server:
        assert merging.items({name: merging.call(server, f"/{name}") for name in "abc"}, most=1) == [("a", 1)]
        for request in server.requests:
            request.wait_aborted()


@pytest.mark.slow
def test_fast_stream_starves_no_other_and_gets_backpressure(merging: Merging) -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        if request.path == "/quiet":
            for _ in range(20):
                yield send("quiet")
                yield wait(0.01)
            yield send("last")
        while True:
            yield b"data: chatty\n\n" * 100

    with SSEServer(script) as server:
        streams = {
            "chatty": merging.call(server, "/chatty", decode="text", max_buffered_bytes=50_000),
            "quiet": merging.call(server, "/quiet", decode="text"),
        }
        items = [item for _, item in merging.items(streams)]
        assert items.count("quiet") == 20
        assert items.count("chatty") > 1000
        server.requests[0].wait_aborted()


def test_items_of_a_partly_read_batch_come_first() -> None:
    with SSEServer([b"".join(b"data: %d\n\n" % n for n in range(5)), wait(0.1), send(5), DONE]) as server:
        stream = request_sse(server.url).events
        assert next(stream) == 0
        assert [item for _, item in merge([stream])] == [1, 2, 3, 4, 5]


def test_stream_that_has_ended_adds_no_item() -> None:
    with SSEServer([send(1), DONE]) as server:
        stream = request_sse(server.url)
        assert list(stream.events) == [1]
        assert list(merge([stream])) == []


def test_streams_that_reconnect_are_merged(merging: Merging) -> None:
    calls: list[int] = []

    def script(request: ReceivedRequest) -> list[Step]:
        return [send(2), DONE] if "last-event-id" in request.headers else [send(1, id="a"), cut()]

    with SSEServer(script) as server:
        policy = ReconnectionPolicy(delay=0.01, jitter=0)
        call = merging.call(server, reconnect=policy, on_reconnect=lambda attempt, delay, cause: calls.append(attempt))
        assert merging.items({"a": call}) == [("a", 1), ("a", 2)]
    assert calls == [1]


def test_request_that_is_retried_before_its_response_is_merged(merging: Merging) -> None:
    responses = iter([[respond(503)], [send(1), DONE]])
    with SSEServer(lambda request: next(responses)) as server:
        policy = ReconnectionPolicy(delay=0.01, jitter=0)
        assert merging.items({"a": merging.call(server, reconnect=policy)}) == [("a", 1)]


def test_done_function_ends_its_stream(merging: Merging) -> None:
    with SSEServer([send(1), send(2), send(3), silence()]) as server:
        call = merging.call(server, done=lambda event: event.data == "2")
        assert merging.items({"a": call}) == [("a", 1), ("a", 2)]


def test_failure_of_a_decode_function_is_its_streams_error(merging: Merging) -> None:
    with SSEServer([send(1), send(2), silence()]) as server:
        call = merging.call(server, decode=lambda event: [0, 10][int(event.data)])
        [first, (name, error)] = merging.items({"a": call}, errors="yield")
        assert (first, name) == (("a", 10), "a")
        assert isinstance(error.__cause__, IndexError)
        server.requests[0].wait_aborted()


def test_streams_are_added_while_it_runs() -> None:
    with SSEServer([send(1), DONE]) as server, merge() as merged:
        merged.add("first", call(server))
        names = []
        for name, _ in merged:
            names.append(name)
            if len(names) < 4:
                merged.add(f"after {name}", call(server))
        assert names == ["first", "after first", "after after first", "after after after first"]
        with pytest.raises(UsageError, match="have ended"):
            merged.add("late", call(server))
        assert server.requests[-1].finished.wait(30)


def test_streams_are_added_from_another_thread() -> None:
    with SSEServer(by_path({"/": [send(1), silence()], "/more": [send(2), DONE]})) as server:
        merged = merge({"a": call(server)})
        loop = iter(merged)
        assert next(loop) == ("a", 1)
        waiting = in_thread(lambda: next(loop))
        until(lambda: is_waiting(waiting))
        merged.add("b", call(server, "/more"))
        assert waiting.result(30) == ("b", 2)
        merged.close()
        assert list(loop) == []


def test_streams_are_added_in_a_coroutine() -> None:
    async def main() -> list[Any]:
        items = []
        async with amerge([partial(arequest_sse, server.url)]) as merged:
            async for name, item in merged:
                items.append((name, item))
                if len(items) == 1:
                    await merged.add("b", await arequest_sse(server.url))
        with pytest.raises(UsageError, match="have ended"):
            await merged.add("c", partial(arequest_sse, server.url))
        return items

    with SSEServer([send(1), DONE]) as server:
        assert asyncio.run(main()) == [(0, 1), ("b", 1)]


def test_close_from_another_thread_ends_the_loop() -> None:
    with SSEServer([send(1), silence()]) as server:
        merged = merge([call(server)] * 3)
        loop = iter(merged)
        assert [next(loop)[1] for _ in range(3)] == [1, 1, 1]
        assert repr(merged) == "<MergedStreams [open] streams=3>"
        waiting = in_thread(lambda: list(loop))
        until(lambda: is_waiting(waiting))
        merged.close()
        assert waiting.result(30) == []
        assert repr(merged) == "<MergedStreams [closed] streams=0>"
        for request in server.requests:
            request.wait_aborted()


def test_close_within_a_batch_delivers_no_further_item(merging: Merging) -> None:
    async def ato_the_end() -> list[Any]:
        items = []
        async with amerge([partial(arequest_sse, server.url)]) as merged:
            async for named in merged:
                items.append(named)
                merged.close()
        return items

    def to_the_end() -> list[Any]:
        items = []
        with merge([call(server)]) as merged:
            for named in merged:
                items.append(named)
                merged.close()
        return items

    with SSEServer([send(1) + send(2) + send(3), silence()]) as server:  # type: ignore[operator]
        assert (asyncio.run(ato_the_end()) if merging.is_async else to_the_end()) == [(0, 1)]


def test_close_while_a_coroutine_waits() -> None:
    async def main() -> list[Any]:
        items = []
        async with amerge([partial(arequest_sse, server.url)]) as merged:
            async for named in merged:
                items.append(named)
                asyncio.get_running_loop().call_later(0.05, merged.close)
        return items

    with SSEServer([send(1), silence()]) as server:
        assert asyncio.run(main()) == [(0, 1)]


def test_close_aborts_unread_streams() -> None:
    with SSEServer([send(1), silence()]) as server:
        for _ in merge([call(server)] * 2):
            break
        gc.collect()
        for request in server.requests:
            request.wait_aborted()


@pytest.mark.parametrize("steps", [[silence()], [send(1), silence()]], ids=["unanswered", "answered"])
@pytest.mark.parametrize("how", ["merged", "iterator", "amerged"])
def test_requests_that_are_dropped_unread_are_aborted(how: str, steps: list[Step]) -> None:
    async def dropped() -> None:
        merged = amerge()
        for _ in range(2):
            await merged.add("x", partial(arequest_sse, server.url))
        await asyncio.to_thread(server.wait_for_request, 2)
        with pytest.warns(ResourceWarning, match="dropped with requests under way"):
            del merged
        await asyncio.to_thread(server.requests[1].wait_aborted)

    with SSEServer(steps) as server:
        if how == "amerged":
            asyncio.run(dropped())
        else:
            made: Any = merge([call(server)] * 2)
            if how == "iterator":
                made = iter(made)
            server.wait_for_request(2)
            with pytest.warns(ResourceWarning, match="dropped with requests under way"):
                del made
        for request in server.requests:
            request.wait_aborted()


def test_abort_of_a_member_without_a_request_does_nothing() -> None:
    Member("a", None, None).abort()


def test_dropped_merge_leaves_the_callers_streams_open() -> None:
    with SSEServer([send(1), silence()]) as server:
        stream = request_sse(server.url).events
        merge([stream])
        gc.collect()
        assert next(stream) == 1
        stream.close()


def test_merge_in_a_forked_child_raises_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with SSEServer([silence()]) as server:
        merged = merge([call(server)])
        gathered = gather([call(server)])
        loop = iter(merged)
        with monkeypatch.context() as patch:
            patch.setattr(fork, "_forks", -1)
            for use in (lambda: next(loop), lambda: iter(merged), lambda: merged.add("x", call(server))):
                with pytest.raises(UsageError, match="before a fork"):
                    use()
            merged.close()
            with pytest.raises(UsageError, match="before a fork"):
                next(gathered)
        server.wait_for_request(1)
        assert server.aborted_requests == 0
        merged.close()
        server.requests[0].wait_aborted()
        # The refused calls sent no request.
        assert server.connections == 1


def test_amerge_in_a_forked_child_sends_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(url: str) -> None:
        merged = amerge()
        monkeypatch.setattr(fork, "_forks", -1)
        with pytest.raises(UsageError, match="before a fork"):
            await merged.add("x", partial(arequest_sse, url))

    with SSEServer([silence()]) as server:
        asyncio.run(main(server.url))
        assert server.connections == 0


@pytest.mark.slow
def test_close_from_many_threads_at_once() -> None:
    with SSEServer([send(1), silence()]) as server:
        merged = merge([call(server) for _ in range(50)])
        assert next(iter(merged)) is not None
        merged = merge([call(server) for _ in range(50)])
        together([merged.close] * 8)
        assert list(merged) == []


@pytest.mark.parametrize("steps", [[silence()], [respond(503)]])
def test_close_while_an_item_is_taken_ends_the_loop_quietly(monkeypatch: pytest.MonkeyPatch, steps: list[Step]) -> None:
    take = Member.take

    def closed_before(member: Any) -> Any:
        merged.close()
        return take(member)

    def abort_first(server: SSEServer) -> None:
        server.wait_for_request()
        merged._merger._members[0].abort()

    with SSEServer(steps) as server:
        merged = merge([call(server)])
        monkeypatch.setattr(Member, "take", closed_before)
        if steps == [silence()]:
            in_thread(lambda: abort_first(server))
        assert list(merged) == []


def test_one_consumer_at_a_time() -> None:
    with SSEServer([send(1), send(2), DONE]) as server:
        merged = merge([call(server)])
        loop = iter(merged)
        assert next(loop) == (0, 1)
        with pytest.raises(UsageError, match="one consumer at a time"):
            next(iter(merged))
        assert next(loop) == (0, 2)
        del loop
        with pytest.raises(UsageError, match="was left"):
            iter(merged)
        # A stream that has been read to its end.
        whole = merge([call(server)])
        assert len(list(whole)) == 2
        assert list(whole) == []


def test_two_tasks_cannot_read_merged_streams() -> None:
    go = threading.Event()

    async def main() -> list[Any]:
        async with amerge([partial(arequest_sse, server.url)]) as merged:
            waiting = asyncio.ensure_future(merged.__anext__())
            while not len(merged._merger):
                await asyncio.sleep(0)
            with pytest.raises(UsageError, match="one consumer at a time"):
                await merged.__anext__()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            # A cancelled wait makes room for another task.
            waiting = asyncio.ensure_future(merged.__anext__())
            go.set()
            return [await waiting, *[named async for named in merged]]

    with SSEServer([respond(), hold(go), send(1), send(2), DONE]) as server:
        assert asyncio.run(main()) == [(0, 1), (0, 2)]


def test_stream_with_another_consumer_cannot_be_merged() -> None:
    with SSEServer([send(1), silence()]) as server:
        stream = request_sse(server.url).events
        with pytest.raises(UsageError, match="'b' is a stream that is merged already"):
            merge({"a": stream, "b": stream})
        left = request_sse(server.url).events
        for _ in left:
            break
        for use in (lambda: merge([left]), left.poll):
            with pytest.raises(UsageError, match="was aborted when its for loop was left"):
                use()


@pytest.mark.slow
def test_cancelled_wait_loses_no_item() -> None:
    async def main() -> list[Any]:
        async with amerge([partial(arequest_sse, server.url)] * 2) as merged:
            found: list[Any] = []
            while len(found) < 4:
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                    found.append(await asyncio.wait_for(merged.__anext__(), 0.02))
            return found

    with SSEServer([respond(), wait(0.1), send(1), wait(0.1), send(2), silence()]) as server:
        assert sorted(asyncio.run(main())) == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_poll_in_the_loops_body() -> None:
    with SSEServer([b"data: 1\n\ndata: 2\n\ndata: 3\n\n", DONE]) as server:
        it = request_sse(server.url).events
        for item in it:
            assert item == 1
            assert polled(it, 2) == [2, 3]


@pytest.mark.parametrize(
    ("streams", "words"),
    [
        (5, "`streams` must be a mapping of names to streams, .*, got int"),
        ("text", "`streams` must be .*, got str"),
        ([5], "stream 0 must be .*, got int"),
        ({"a": lambda: None}, "the function of the stream 'a' must return what .*, got NoneType"),
        ([partial(len, "x")], "the function of the stream 0 must return what .*, got int"),
        ([lambda: SSEClient("http://h").call("/")], r"got Call\. Return call"),
    ],
)
def test_type_of_the_streams_is_checked(merging: Merging, streams: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        merging.items(streams)


def test_one_stream_instead_of_many_raises_usage_error() -> None:
    with SSEServer([send(1), DONE]) as server, request_sse(server.url) as response:
        with pytest.raises(UsageError, match=r"`streams` must be a mapping .*, got SSEResponse"):
            merge(response)
        with pytest.raises(UsageError, match=r"'a' must be .*, got SSEResponse"):
            asyncio.run(_read_all(amerge({"a": response})))


async def _read_all(merged: AsyncMergedStreams[Any, Any]) -> list[Any]:
    return [named async for named in merged]


def test_unsent_request_is_an_error_of_its_own_stream(merging: Merging) -> None:
    is_set = threading.Event()
    is_set.set()
    with SSEServer([send(1), DONE]) as server:
        calls = [merging.call(server, cancel=is_set), merging.call(server)]
        cancelled, item = sorted(merging.items(calls, errors="yield"), key=lambda named: named[0])
        assert item == (1, 1)
        assert type(cancelled[1]) is RequestAbortedError
        assert cancelled[1].stream_name == 0
        with pytest.raises(RequestAbortedError):
            merging.items(calls)


def test_wrong_arguments_raise_usage_error(merging: Merging) -> None:
    with pytest.raises(UsageError, match="errors"):
        merging.items([], errors="ignore")
    with SSEServer([send(1), silence()]) as server:
        # Requests that were sent already are aborted.
        with pytest.raises(UsageError, match="url"):
            merging.items([merging.call(server), partial(merging.request, 5)])
        with pytest.raises(TypeError, match="unknown"):
            merging.items([merging.call(server, unknown=1)])
        for request in server.requests:
            request.wait_aborted()
