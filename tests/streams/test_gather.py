"""gather: many requests, and their results."""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from sseqbridge import (
    StatusError,
    UsageError,
    gather,
    merge,
    request_sse,
)
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, respond, send, silence, wait
from tests.support import in_thread, is_waiting, until

pytestmark = pytest.mark.configurations("default", "plain")

DONE = send("[DONE]")


def call(server: SSEServer, path: str = "/", **options: Any) -> partial[Any]:
    return partial(request_sse, f"{server.url}{path}", **options)


def numbered(turns: list[threading.Event]) -> Callable[[ReceivedRequest], Iterator[Step]]:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        number = int(request.path.strip("/"))
        yield hold(turns[number])
        yield send({"n": number})
        yield send({"n": -number})
        yield DONE

    return script


def test_results_have_the_order_of_the_calls() -> None:
    turns = [threading.Event() for _ in range(8)]
    with SSEServer(numbered(turns)) as server:
        gathering = in_thread(lambda: list(gather([call(server, f"/{n}") for n in range(8)], limit=8)))
        for n in reversed(range(8)):
            turns[n].set()
            # Later requests complete first.
            until(lambda: sum(request.finished.is_set() for request in server.requests) == 8 - n)  # noqa: B023
        results = gathering.result(30)
    assert results == [(n, [{"n": n}, {"n": -n}]) for n in range(8)]


def test_results_can_have_the_order_of_completion() -> None:
    turns = [threading.Event() for _ in range(5)]
    names = []
    with SSEServer(numbered(turns)) as server:
        turns[4].set()
        for name, _ in gather({n: call(server, f"/{n}") for n in range(5)}, in_order=False, limit=8):
            names.append(name)
            turns[name - 1].set()
    assert names == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("in_order", [True, False])
def test_limit_bounds_the_concurrent_requests(in_order: bool) -> None:
    concurrent = most = 0

    def script(request: ReceivedRequest) -> Iterator[Step]:
        nonlocal concurrent, most
        concurrent += 1
        most = max(most, concurrent)
        yield wait(0.01)
        yield send(1)
        # The client may send the next request when it has received the end.
        concurrent -= 1
        yield DONE

    read: list[int] = []

    def calls() -> Iterator[partial[Any]]:
        for n in range(30):
            read.append(n)
            yield call(server, f"/{n}")

    with SSEServer(script) as server:
        results = gather(calls(), limit=4, in_order=in_order)
        assert read == []
        next(results)
        # The calls are consumed lazily.
        assert len(read) <= 8
        assert len(list(results)) == 29
    assert most <= 4


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_at_most_twice_the_limit_are_started_and_not_yielded(limit: int) -> None:
    first = threading.Event()
    started: list[int] = []

    def script(request: ReceivedRequest) -> Iterator[Step]:
        if request.path == "/0":
            yield hold(first)
        yield send(request.path)
        yield DONE

    def calls() -> Iterator[partial[Any]]:
        for n in range(40):
            started.append(n)
            yield call(server, f"/{n}", decode="text")

    with SSEServer(script) as server:
        results = gather(calls(), limit=limit)
        gathering = in_thread(lambda: next(results))
        # With one call at a time, the others wait for the first.
        other_calls = 2 * limit - 1 if limit > 1 else 0
        until(lambda: sum(request.finished.is_set() for request in server.requests) == other_calls)
        until(lambda: is_waiting(gathering))
        assert len(started) == other_calls + 1
        first.set()
        yielded = [gathering.result(30)]
        for result in results:
            assert len(started) - len(yielded) <= 2 * limit
            yielded.append(result)
    assert yielded == [(n, [f"/{n}"]) for n in range(40)]


def test_error_ends_all_requests_or_is_a_result() -> None:
    has_asked = threading.Event()

    def script(request: ReceivedRequest) -> list[Step]:
        if request.path == "/2":
            has_asked.set()
        return {"/0": [send(1), DONE], "/1": [hold(has_asked), respond(503)], "/2": [silence()]}[request.path]

    with SSEServer(script) as server:
        with pytest.raises(StatusError) as caught:
            list(gather({name: call(server, f"/{name}") for name in "012"}))
        assert caught.value.stream_name == "1"
        next(request for request in server.requests if request.path == "/2").wait_aborted()
        results = gather({name: call(server, f"/{name}") for name in "01"}, errors="yield")
        assert next(results) == ("0", [1])
        assert isinstance(next(results)[1], StatusError)
        assert list(results) == []


def test_leaving_the_results_early_aborts_the_rest() -> None:
    has_asked = threading.Event()

    def script(request: ReceivedRequest) -> list[Step]:
        if request.path == "/1":
            has_asked.set()
        return {"/0": [send(1), hold(has_asked), DONE], "/1": [silence()]}[request.path]

    with SSEServer(script) as server:
        for _ in gather([call(server, f"/{n}") for n in range(2)]):
            break
        gc.collect()
        next(request for request in server.requests if request.path == "/1").wait_aborted()


def test_streams_that_were_just_closed_have_no_result() -> None:
    merged = merge()
    merger = merged._merger
    assert merger.delivered(merger._step(1)) == []


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, None])
def test_limit_must_be_a_positive_int(limit: Any) -> None:
    with pytest.raises(UsageError, match="limit"):
        gather([], limit=limit)


def test_progress_bar_counts_completed_requests(monkeypatch: pytest.MonkeyPatch, bare_tqdm: None) -> None:
    bars: list[Any] = []
    module: Any = importlib.import_module("tqdm")
    make = module.tqdm

    def record(*args: Any, **options: Any) -> Any:
        bars.append(make(*args, **options))
        return bars[-1]

    monkeypatch.setattr(module, "tqdm", record)
    with SSEServer([send(1), DONE]) as server:
        assert len(list(gather([call(server)] * 5, progress=True))) == 5
        assert len(list(gather((call(server) for _ in range(3)), progress=True))) == 3
    assert [(bar.n, bar.total) for bar in bars] == [(5, 5), (3, None)]


def test_progress_bar_needs_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        gather([], progress=True)
