"""Consumers of streams with random faults, in many threads, and the results that are allowed.

The faults are in faults.py. Invariant: received events are delivered, a stream that ends as complete is complete, and
a stream fails only in ways that its fault allows.
"""

from __future__ import annotations

import asyncio
import collections
import faulthandler
import functools
import gc
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sseqbridge import (
    Bridge,
    EventStream,
    ProtocolError,
    ReadError,
    ReconnectionPolicy,
    RequestAbortedError,
    ServerSentEvent,
    SSEError,
    StreamTimeoutError,
    Timeout,
    TransportError,
    TruncatedStreamError,
    request_sse,
)
from sseqbridge._engine.stream_task import StreamTask
from sseqbridge._runtime import loops
from sseqbridge._streams.stream import reader_of
from tests.support import ROOT, until

from .faults import DONE, Plan, plan_of, signed

__all__ = ["Left", "Run", "proxied", "run"]

THREADS = (1, 4, 16, 64, 128, 200)
# The limits of a stream: in total, and of silence.
STUCK_SECONDS = 30.0
PATIENCE = 0.15
AT_ONCE = ReconnectionPolicy(delay=0.001, jitter=0, resume="repeat")


@contextmanager
def proxied(seed: int) -> Iterator[tuple[str, Callable[[], int]]]:
    """The upstream and its proxy in a process of their own: URL, and number of open connections."""
    command = [sys.executable, "-m", "tests.engine.faults", str(seed)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        commands, replies = process.stdin, process.stdout
        assert commands is not None
        assert replies is not None

        def open_connections() -> int:
            commands.write("\n")
            commands.flush()
            return int(replies.readline())

        try:
            yield f"http://127.0.0.1:{int(replies.readline())}", open_connections
        finally:
            process.kill()


# The ways to read a stream. Each appends to `items`.

CallLater = Callable[[Callable[[], object]], object]
Behaviour = Callable[[Plan, EventStream[Any], list[Any], CallLater], None]


class LeftError(Exception):
    """An exception of a consumer's own code."""


def read(plan: Plan, events: EventStream[Any], items: list[Any], call_later: CallLater) -> None:
    items.extend(events)


def collect(plan: Plan, events: EventStream[Any], items: list[Any], call_later: CallLater) -> None:
    take(plan.take, events, items)
    items += events.collect()


def next_with_timeouts(plan: Plan, events: EventStream[Any], items: list[Any], call_later: CallLater) -> None:
    while wait_for_next(plan, events, items):
        pass


def poll(plan: Plan, events: EventStream[Any], items: list[Any], call_later: CallLater) -> None:
    items += events.poll()
    while wait_for_next(plan, events, items):
        items += events.poll()


def wait_for_next(plan: Plan, events: EventStream[Any], items: list[Any]) -> bool:
    """Wait for an item within the limit of the plan; return whether more may follow."""
    try:
        items.append(events.next(plan.seconds))
    except TimeoutError:
        pass
    except StopIteration:
        return False
    return True


def nested(plan: Plan, events: EventStream[Any], items: list[Any], call_later: CallLater) -> None:
    for item in events:
        items.append(item)
        take(1, events, items)


def keep_open(plan: Plan, events: EventStream[Any], items: list[Any], call_later: CallLater) -> None:
    if plan.take:
        for item in events.keep_open():
            items.append(item)
            if len(items) == plan.take:
                break
    read(plan, events, items, call_later)


def stall(plan: Plan, events: EventStream[Any], items: list[Any], call_later: CallLater) -> None:
    for item in events:
        items.append(item)
        if len(items) >= plan.take:
            time.sleep(plan.seconds)


def break_off(plan: Plan, events: EventStream[Any], items: list[Any], call_later: CallLater) -> None:
    for item in events:
        items.append(item)
        if len(items) >= plan.take:
            break


def close(plan: Plan, events: EventStream[Any], items: list[Any], call_later: CallLater) -> None:
    take(plan.take, events, items)
    at = time.monotonic()
    events.close()
    assert is_down(events, at), "close() has returned, but the stream's task still runs"
    assert list(events) == []


def close_elsewhere(plan: Plan, events: EventStream[Any], items: list[Any], call_later: CallLater) -> None:
    take(plan.take, events, items)
    call_later(events.close)
    read(plan, events, items, call_later)


def raise_in_loop(plan: Plan, events: EventStream[Any], items: list[Any], call_later: CallLater) -> None:
    try:
        with events:
            for item in events:
                items.append(item)
                if len(items) >= plan.take:
                    at = time.monotonic()
                    raise LeftError
    except LeftError:
        assert is_down(events, at), "the block was left, but the stream's task still runs"


def drop(plan: Plan, events: EventStream[Any], items: list[Any], call_later: CallLater) -> None:
    take(plan.take, events, items)


def reconnect(plan: Plan, events: EventStream[Any], items: list[Any], call_later: CallLater) -> None:
    call_later(events.reconnect)
    stall(plan, events, items, call_later)


def is_down(events: EventStream[Any], closed_at: float) -> bool:
    """Whether a closed stream has finished, after a second at most."""
    is_finished = reader_of(events).cursor.subscription.finished
    return events.outcome != "closed" or is_finished or time.monotonic() > closed_at + 1


def take(count: int, events: EventStream[Any], items: list[Any]) -> None:
    items += itertools.islice(iter(functools.partial(next, events, None), None), count)


BEHAVIOURS: dict[str, Behaviour] = {
    "read": read,
    "collect": collect,
    "next": next_with_timeouts,
    "poll": poll,
    "nested": nested,
    "keep open": keep_open,
    "stall": stall,
    "break": break_off,
    "close": close,
    "close elsewhere": close_elsewhere,
    "cancel": read,
    "drop": drop,
    "raise": raise_in_loop,
    "reconnect": reconnect,
}
READERS = {"read", "collect", "next", "poll", "nested", "keep open", "stall", "reconnect"}


@dataclass
class Result:
    """The items and the end of one stream."""

    plan: Plan
    items: list[Any]
    outcome: str | None = None
    error: SSEError | None = None

    @property
    def is_lost_at_once(self) -> bool:
        """Whether the stream failed before its response, as on a dead kept-alive connection."""
        return isinstance(self.error, TransportError) and self.outcome is None

    def __str__(self) -> str:
        return self.outcome or "open" if self.error is None else type(self.error).__name__


class LaterCalls:
    """Threads that act on streams a moment later."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self.errors: list[BaseException] = []

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call `function` after `seconds`."""
        self._executor.submit(self._run, seconds, function)

    def _run(self, seconds: float, function: Callable[[], object]) -> None:
        time.sleep(seconds)
        try:
            function()
        except BaseException as exc:
            self.errors.append(exc)


def consume(plan: Plan, url: str, bridge: Bridge, later_calls: LaterCalls, patience: float) -> Result:
    """Open a stream, and read it by its plan."""
    ask: Any = request_sse
    result = Result(plan, [])
    later = functools.partial(later_calls.later, plan.seconds)
    cancel = None
    if plan.behaviour == "cancel":
        cancel = threading.Event()
        later(cancel.set)
    try:
        events: EventStream[Any] = ask(
            url,
            data={"prompt": "x" * 100} if plan.has_body else None,
            decode=(lambda event: json.loads(event.data)) if plan.decode == "function" else plan.decode,
            done=functools.partial(is_last, plan) if plan.done == "function" else DONE,
            require_done=plan.require_done,
            timeout=timeout_of(plan, patience),
            cancel=cancel,
            reconnect=AT_ONCE if plan.reconnects else None,
            max_buffered_bytes=plan.max_buffered_bytes,
            bridge=bridge,
        ).events
        try:
            BEHAVIOURS[plan.behaviour](plan, events, result.items, later)
        finally:
            result.outcome = events.outcome
    except SSEError as exc:
        # Without the traceback, whose frames reference the stream.
        result.error = exc.with_traceback(None)
    return result


def is_last(plan: Plan, event: ServerSentEvent) -> bool:
    return event.id == str(len(plan.items) - 1)


def timeout_of(plan: Plan, patience: float) -> Timeout:
    if all(fault.ending not in ("corrupt", "silence") for fault in plan.faults):
        return Timeout(connect=None, read=None)
    return Timeout(
        connect=None,
        read=patience if plan.limit == "read" else 2 * patience,
        idle=patience if plan.limit == "idle" else None,
        total=patience if plan.limit == "total" else None,
    )


# The allowed results.


def check(result: Result) -> None:
    """Raise AssertionError for a result that is not allowed."""
    plan = result.plan
    try:
        _check(result)
    except AssertionError:
        # A GET is sent again if a kept-alive connection closes before the first byte of the response.
        first = plan.fault(0)
        if plan.has_body or plan.reconnects or first.at or first.ending not in ("cut", "reset"):
            raise
        _check(replace(result, plan=replace(plan, faults=plan.faults[1:])))


def _check(result: Result) -> None:
    plan, items, error = result.plan, [decoded(item) for item in result.items], result.error
    if plan.fault(0).ending == "corrupt":
        if plan.is_compressed:
            # Changed bytes can mean anything, such as a second last event.
            return
        numbers = [item[0] for item in items if is_signed(item)]
        assert numbers == sorted(set(numbers)), f"repeated, or out of order: {numbers}"
        return
    assert items == plan.items[: len(items)], f"lost, repeated or out of order: {[item[0] for item in items]}"
    if error is not None:
        assert result.outcome in (None, "error"), f"an error, but the outcome is {result.outcome}"
        check_error(plan, error, len(items))
    elif result.outcome in ("done", "eof"):
        check_end(plan, result.outcome, len(items))
    elif result.outcome is None:
        assert plan.behaviour == "drop"
    else:
        assert result.outcome == "closed"
        assert plan.behaviour not in READERS


def check_end(plan: Plan, outcome: str, count: int) -> None:
    """Check a stream with a clean end."""
    fault, response = plan.fault(0), plan.response
    expected, whole = "eof" if plan.done == "none" else "done", len(plan.items)
    if fault.ending == "cut" and plan.framing == "close" and not plan.reconnects:
        # Only the last event shows whether the stream is complete; or the end of a compressed body, but for
        # a body of no byte at all.
        arrived = response.arrived(fault.at)
        if arrived < len(response.ends) and (fault.at == response.head or not plan.is_compressed):
            expected, whole = end_in_a_block(plan, arrived)
            assert not plan.require_done or expected == "done"
    assert outcome == expected, f"the outcome is {outcome}, not {expected}"
    assert count == whole, f"a clean end after {count} of {whole} items"


def end_in_a_block(plan: Plan, arrived: int) -> tuple[str, int]:
    """Return the outcome and the number of items of an uncompressed body that ends within a block.

    The block counts without its blank line if its data is complete, and the end marker, or a JSON document in JSON
    mode. (The `done` function of a plan looks at the ID, which such a block does not set.)
    """
    at, end = plan.fault(0).at, plan.response.ends[arrived]
    # The CR of a CRLF at the end of the blank line completes the event.
    is_whole = at >= end + (plan.line_end == b"\r\n") - 2 * len(plan.line_end)
    if arrived == len(plan.items):
        return ("done" if is_whole else "eof"), arrived
    return "eof", arrived + (is_whole and plan.decode == "json")


def check_error(plan: Plan, error: SSEError, count: int) -> None:
    """Check a stream with an error, or without an end."""
    fault, response = plan.fault(0), plan.response
    if isinstance(error, RequestAbortedError):
        assert plan.behaviour == "cancel"
        return
    if isinstance(error, ProtocolError) and has_no_field(plan):
        return
    assert isinstance(error, (ReadError, TruncatedStreamError, StreamTimeoutError)), "no fault causes this error"
    if plan.reconnects:
        # The server may have handled the request.
        assert plan.has_body, "a GET was not retried"
        assert count == 0, "a stream with events did not reconnect"
        return
    assert fault.ending in ("cut", "reset", "silence")
    # A RST may overtake bytes that were sent before it.
    is_complete = fault.at == len(response.data) and fault.ending == "cut" and plan.framing != "close"
    assert not is_complete, "an error after a complete response"
    arrived = response.arrived(fault.at)
    if fault.ending == "cut" and plan.framing == "close" and arrived < len(response.ends):
        _, arrived = end_in_a_block(plan, arrived)
    assert count <= arrived or plan.is_compressed, f"{count} items, but only {arrived} can have arrived"
    if fault.ending == "silence":
        assert isinstance(error, StreamTimeoutError)
    elif fault.ending == "cut":
        assert isinstance(error, ReadError if fault.at < response.head else TruncatedStreamError)
        # Items received before an error come first, except from collect().
        if plan.behaviour != "collect":
            assert count >= min(arrived, len(plan.items)), f"{count} of {arrived} items"


def has_no_field(plan: Plan) -> bool:
    """Whether an unframed body is cut off within its first field name, so that it is no event stream."""
    fault, response = plan.fault(0), plan.response
    body = response.data[response.head : fault.at]
    return fault.ending == "cut" and plan.framing == "close" and bool(body) and b":" not in body


def spoils(plan: Plan) -> bool:
    """Whether a stream may leave a connection in the pool that is dead, but does not look so."""
    return any(
        fault.ending == "corrupt" or (fault.ending != "whole" and fault.at == len(plan.response.data))
        for fault in plan.faults
    )


def decoded(item: Any) -> Any:
    if isinstance(item, ServerSentEvent):
        item = item.data
    if isinstance(item, str):
        try:
            return json.loads(item)
        except ValueError:
            return None
    return item


def is_signed(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 3 and item == signed(item[0], item[1])


class Run:
    """A run of streams and their results. Each response takes `lasts` seconds, or no time."""

    def __init__(self, url: str, bridge: Bridge, seed: int, lasts: float = 0.0) -> None:
        self._url = url
        self._bridge = bridge
        self._seed = seed
        self._lasts = lasts
        self._asked = itertools.count()
        # The current stream of each thread, and its start.
        self._under_way: dict[int, tuple[int, float]] = {}
        # Guards the fields below.
        self._lock = threading.Lock()
        self.ends: collections.Counter[tuple[str, str]] = collections.Counter()
        self.failures: list[str] = []
        self.victims = self.spoilers = self.items = 0

    def read(self, numbers: Iterable[int], threads: int) -> None:
        """Read these streams, and wait until only idle connections are left."""
        left = iter(numbers)
        with ThreadPoolExecutor(16) as executor:
            later_calls = LaterCalls(executor)
            workers = [
                threading.Thread(target=self._work, args=(left, later_calls), daemon=True) for _ in range(threads)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                while worker.is_alive():
                    worker.join(1)
                    self._check_progress()
        assert not later_calls.errors, later_calls.errors
        until(self._is_idle)

    def check(self) -> None:
        """Raise AssertionError for a result that is not allowed."""
        for failure in self.failures[:10]:
            print(failure, file=sys.stderr)
        assert not self.failures, f"{len(self.failures)} streams had results that are not allowed"
        assert self.victims <= self.spoilers

    def _is_idle(self) -> bool:
        state = self._bridge.started()
        return not state.stream_tasks and not asyncio.all_tasks(state.loop)

    def _check_progress(self) -> None:
        now = time.monotonic()
        for number, since in tuple(self._under_way.values()):
            if now - since > STUCK_SECONDS:
                faulthandler.dump_traceback()
                raise AssertionError(f"a consumer hangs: {plan_of(self._seed, number)}")

    def _work(self, numbers: Iterator[int], later_calls: LaterCalls) -> None:
        # next() of a range's iterator is atomic.
        for number in numbers:
            self._under_way[threading.get_ident()] = number, time.monotonic()
            plan = plan_of(self._seed, number)
            url = f"{self._url}/{number}/{next(self._asked)}/{self._lasts * 1000:.0f}"
            try:
                self._judge(consume(plan, url, self._bridge, later_calls, PATIENCE + self._lasts))
            except Exception as exc:
                # Every other exception is a fault.
                self.failures.append(f"{type(exc).__name__}: {exc}\n{plan}, {len(plan.response.data)} bytes")
            finally:
                del self._under_way[threading.get_ident()]

    def _judge(self, result: Result) -> None:
        plan, is_victim = result.plan, False
        try:
            check(result)
        except AssertionError as exc:
            if not result.is_lost_at_once:
                raise AssertionError(f"{exc}, after {len(result.items)} items: {result.error!r}") from result.error
            is_victim = True
        with self._lock:
            self.ends[plan.fault(0).ending, str(result)] += 1
            self.items += len(result.items)
            self.victims += is_victim
            self.spoilers += spoils(plan)


class Left(NamedTuple):
    """Threads, descriptors and tasks of the process that streams can leak."""

    threads: int
    descriptors: int
    objects: int

    @classmethod
    def now(cls) -> Left:
        """Count."""
        # libuv keeps the descriptors of its first loop.
        loops.new_event_loop().close()
        gc.collect()
        # Not isinstance(), which asks lazy objects of other packages, such as Django's, for their class.
        objects = sum(issubclass(type(thing), (EventStream, StreamTask)) for thing in gc.get_objects())
        return cls(threading.active_count(), len(os.listdir("/dev/fd")), objects)

    def is_more_than(self, before: Left) -> bool:
        """Whether any count is larger."""
        return any(count > earlier for count, earlier in zip(self, before, strict=True))


def run(streams: int | Sequence[int], seed: int, report: Callable[[int], object] = lambda number: None) -> Run:
    """Read this many streams, or these, and check their results and leaks."""
    before = Left.now()
    with proxied(seed) as (url, open_connections):
        with Bridge() as bridge:
            done = Run(url, bridge, seed)
            if isinstance(streams, int):
                for numbers, threads in parts(streams, seed):
                    done.read(numbers, threads)
                    report(numbers.stop)
            else:
                done.read(streams, 1)
            until(functools.partial(is_counted_alike, bridge, open_connections))
        until(lambda: not open_connections())
    del bridge
    done.check()
    left = Left.now()
    assert not left.is_more_than(before), f"{left}, and {before} before"
    return done


def is_counted_alike(bridge: Bridge, open_connections: Callable[[], int]) -> bool:
    """Whether both sides have the same number of kept-alive connections."""
    return bridge.stats().connections == open_connections()


def parts(streams: int, seed: int) -> Iterator[tuple[range, int]]:
    """Yield ranges of stream numbers, and the number of threads for each."""
    chance, begin = random.Random(seed), 0
    while begin < streams:
        threads = chance.choice(THREADS)
        end = min(begin + threads * chance.randint(5, 40), streams)
        yield range(begin, end), threads
        begin = end
