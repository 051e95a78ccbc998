"""Interrupts at each bytecode: a tracer raises before the first bytecode of the package, then before the second...

Signals arrive at no chosen point, so the tests send none. An interrupt is not raised where CPython looks for none:

- before the return of the function that the application has called, since the item is the application's then
- before the return of a coroutine to the coroutine that awaits it
- between the body of a `with` block and the `__exit__` of its lock (CPython looks for signals after calls and
  backward jumps; a call at the end of the body still belongs to the body)

`numbers()` makes a stream without a connection.
"""

from __future__ import annotations

import collections
import contextlib
import dis
import gc
import inspect
import random
import sys
from collections.abc import Callable, Generator, Iterator
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple, TypeVar

import httpx
import pytest

import sseqbridge
from sseqbridge import EventStream, ServerSentEvent
from sseqbridge._engine.batches import Batch
from sseqbridge._engine.channel import End, ThreadChannel
from sseqbridge._engine.responses import Body, Head
from sseqbridge._engine.scope import Ownership
from sseqbridge._engine.stats import StreamStats
from sseqbridge._streams.cursor import Cursor
from sseqbridge._streams.decoding import Decoder
from sseqbridge._streams.reader import ItemReader

__all__ = ["ALL", "COUNT", "MARKS", "Alarm", "InMemory", "Interrupt", "interruptions", "numbers", "read_all"]

# Interrupt a call at every how many bytecodes, from a random one on. conftest.py sets it.
step = 1

PACKAGE = str(Path(sseqbridge.__file__).parent)
PREPARING = tuple(f"{PACKAGE}/{module}" for module in ("_streams/arguments", "_http", "_checks"))
RETURNS = {dis.opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in dis.opmap}

COUNT = 4
ALL = [str(number) for number in range(COUNT)]

T = TypeVar("T")

MARKS = [
    # They set a tracer of their own, which is slow, and cannot be combined with coverage's.
    pytest.mark.heavy,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("no_garbage"),
    # Streams that are left open after an interrupt.
    pytest.mark.filterwarnings("ignore:.*was dropped while it was open:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*was dropped with requests under way:ResourceWarning"),
    # An exception in a finalizer does not propagate.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Alarm(BaseException):
    """Raised by a signal handler."""


class Interrupt:
    """Raises an Alarm before one bytecode of the package; with `is_deep` also of the standard library that it calls.

    Leaves out the modules that only check arguments and build a request, if `is_prepared`. `number` counts bytecodes
    from 1, of all frames, or of one: `frame` is its number, in the order in which they are entered or resumed, from 0.
    Tracing one frame is much faster. `passed` has the frame's number, code and offset of each bytecode that was passed.
    """

    def __init__(
        self, number: int, frame: int | None = None, *, is_deep: bool = False, is_prepared: bool = False
    ) -> None:
        self.left = number
        self.passed: list[tuple[int, CodeType, int]] = []
        self._frame = frame
        self._entered = 0
        self._is_deep = is_deep
        self._left_out = PREPARING if is_prepared else ()
        # Where it was raised, for the message of a failed test.
        self.place = ""

    def __repr__(self) -> str:
        return f"<Interrupt at {self.place}>"

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        is_package = _is_in_package(frame)
        if not (is_package or self._is_deep):
            return None
        if self._left_out and _is_in(frame, self._left_out):
            return None
        if not is_package and ("site-packages" in frame.f_code.co_filename or not _is_called_by_package(frame)):
            return None
        number = self._entered
        self._entered += 1
        if self._frame not in (None, number):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return partial(self._step, number, _uninterrupted(frame.f_code, _is_called_by_package(frame)))

    def _step(self, number: int, uninterrupted: frozenset[int], frame: FrameType, event: str, argument: Any) -> None:
        if event == "opcode" and frame.f_lasti not in uninterrupted:
            self.left -= 1
            self.passed.append((number, frame.f_code, frame.f_lasti))
            if not self.left:
                sys.settrace(None)
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name} +{frame.f_lasti}"
                raise Alarm(self.place)


def _is_in_package(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(PACKAGE)


def _is_in(frame: FrameType, modules: tuple[str, ...]) -> bool:
    """Return whether one of the modules runs, or has called this function."""
    while _is_in_package(frame):
        if frame.f_code.co_filename.startswith(modules):
            return True
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False


def _is_called_by_package(frame: FrameType) -> bool:
    caller = frame.f_back
    while caller is not None:
        if _is_in_package(caller):
            return True
        caller = caller.f_back
    return False


@cache
def _uninterrupted(code: CodeType, is_inner: bool) -> frozenset[int]:
    """Return the offsets of the instructions before which no interrupt comes."""
    everything = [each for each in dis.get_instructions(code) if each.opname != "CACHE"]
    instructions = [each for each in everything if each.opname != "NOP"]
    # The item of an outermost function is the application's.
    returns = not is_inner or code.co_flags & inspect.CO_COROUTINE
    offsets = {each.offset for each in instructions if each.opcode in RETURNS} if returns else set()
    offsets |= {each.offset for each in everything if each.opname == "NOP"}
    # The calls of __exit__(None, None, None).
    for at, first in enumerate(instructions):
        window = instructions[at : at + 5]
        pushes = [each for each in window[:3] if each.opname in ("LOAD_CONST", "DUP_TOP") and each.argval is None]
        calls = [each for each in window[3:] if each.opname in ("CALL", "PRECALL", "CALL_FUNCTION")]
        if first.opname == "LOAD_CONST" and len(pushes) == 3 and calls and calls[0] is window[3]:
            # A `return` in the block keeps its value below the arguments.
            swaps = [each for each in instructions[max(0, at - 1) : at] if each.opname in ("SWAP", "ROT_TWO")]
            offsets.update(each.offset for each in (*swaps, *pushes, *calls))
    return frozenset(offsets)


def interruptions(
    make: Callable[[], T],
    read: Callable[[T], object],
    *,
    least: int = 50,
    close: Callable[[T], object] | None = None,
    **options: bool,
) -> Iterator[tuple[T, BaseException]]:
    """Interrupt `read` at each bytecode in turn, each time with a new object; yield the object and the exception.

    With fewer cases (the option --cases), at every tenth one, from a random one on.

    A complete call before the others finds the frame of each bytecode. `close` closes what a complete call has opened;
    with it, each interrupt is at the very bytecode, even if the thread of a bridge is faster than in the first call.
    `least` is the least number of bytecodes that are expected, `options` are those of Interrupt.
    """
    made = make()
    places = _places(made, read, **options)
    if close is not None:
        close(made)
    del made
    # The collections, also those of the tests, look only at the objects of the test.
    gc.collect()
    gc.freeze()
    with _finalizers_find_their_attributes():
        try:
            number = yield from _interrupt_each(make, read, close, places, options)
        finally:
            gc.unfreeze()
        # Interrupted streams are in cycles with their tracebacks. Here, where their warnings are ignored.
        gc.collect()
    assert number > least


@contextlib.contextmanager
def _finalizers_find_their_attributes() -> Iterator[None]:
    """Fail if a finalizer of the package raises an AttributeError: an interrupt may end any __init__."""
    errors: list[str] = []

    def note(unraisable: Any) -> None:
        is_ours = getattr(unraisable.object, "__module__", "").startswith("sseqbridge.")
        if is_ours and issubclass(unraisable.exc_type, AttributeError):
            errors.append(str(unraisable.exc_value))
        reported(unraisable)

    reported, sys.unraisablehook = sys.unraisablehook, note
    try:
        yield
    finally:
        sys.unraisablehook = reported
    assert errors == []


def _interrupt_each(
    make: Callable[[], T],
    read: Callable[[T], object],
    close: Callable[[T], object] | None,
    places: list[Place],
    options: dict[str, bool],
) -> Generator[tuple[T, BaseException], None, int]:
    """Do what interruptions() says. Returns a number that is greater than that of the bytecodes."""
    number = random.randint(1, step)
    is_placed = True
    while True:
        made = make()
        if is_placed and number <= len(places):
            place = places[number - 1]
            interrupt = Interrupt(place.number, place.frame, **options)
        else:
            is_placed = False
            interrupt = Interrupt(number, **options)
        # Nothing of the package runs by chance.
        gc.disable()
        try:
            with interrupt:
                read(made)
        except Alarm as alarm:
            # The exception, and so all of its frames, are alive during the check.
            assert alarm.__traceback__ is not None
            yield made, alarm
            if close is not None and is_placed and interrupt.passed[-1][1:] != places[number - 1][2:]:
                # The call took another path than the first one, so that the interrupt was at another bytecode.
                is_placed = False
                continue
        else:
            if close is not None:
                close(made)
            if interrupt.left > 0 and not is_placed:
                return number
            if interrupt.left > 0:
                # The call took another path than the first one: count all bytecodes.
                is_placed = False
                continue
            # The interrupt was raised in a finalizer, which swallows it.
        finally:
            gc.enable()
        number += step
        is_placed = True


class Place(NamedTuple):
    """A bytecode of a call: its number in its frame, from 1, the number of the frame, and the instruction."""

    number: int
    frame: int
    code: CodeType
    offset: int


def _places(made: T, read: Callable[[T], object], **options: bool) -> list[Place]:
    """Return the bytecodes of a call."""
    recording = Interrupt(-1, **options)
    gc.disable()
    try:
        with recording:
            read(made)
    finally:
        gc.enable()
    counts: collections.Counter[int] = collections.Counter()
    places = []
    for frame, code, offset in recording.passed:
        counts[frame] += 1
        places.append(Place(counts[frame], frame, code, offset))
    return places


class Loop:
    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        callback(*args)


class InMemory:
    """A subscription whose entries are all there."""

    target = "http://upstream/"
    initial_event_id = ""
    done_event = None
    is_inherited = False
    shares_events = False
    finished = True
    is_running = True
    # The loop's thread is the test's.
    loop: Any = Loop()

    def __init__(self, batches: list[list[str]], end: End | None = None, status: int = 200) -> None:
        self.channel: ThreadChannel[Any] = ThreadChannel(1 << 20)
        self.status = status
        self.ownership = Ownership()
        if status != 200:
            self.channel.send_nowait(Body(b"no"))
        for items in batches:
            # The ID of each event is its data.
            events: list[Any] = [ServerSentEvent("message", item, item) for item in items]
            self.channel.send_nowait(Batch(events, len(items), 1, items[-1], None))
        if end is not None:
            self.channel.end(end)

    def nothing(self, *_: Any) -> None: ...

    check_process = drain = reconnect = notify_finished = watch = nothing
    call_at_loop_end = cancel_call_at_loop_end = wait_finished = nothing

    def abort(self) -> None:
        self.channel.close()

    def stats(self) -> StreamStats:
        return StreamStats(0, 0, self.channel.buffered, 0, None)

    def in_loop_thread(self) -> bool:
        return False

    async def await_finished(self, timeout: float) -> None: ...

    def stream(self, kind: Any = EventStream, decode: Any = "text", done: Any = None, cancel: Any = None) -> Any:
        head = Head(self.status, httpx.Headers(), "HTTP/1.1")
        return kind(ItemReader(Cursor(self, head, Decoder(decode, done, "raise"), cancel, None)))


def numbers(kind: Any = EventStream, *, end: End | None = None, **options: Any) -> Any:
    """Return a stream of "0", "1" and so on, in batches. The ID of each event is its data."""
    return InMemory([ALL[:2], ALL[2:3], ALL[3:]], end).stream(kind, **options)


def read_all(stream: Any, got: list[str], way: str) -> None:
    """Add COUNT items of a stream to `got`. `way` is "next", "poll", "loop", "keep_open" or "collect"."""
    if way == "collect":
        got += stream.collect()
    elif way in ("loop", "keep_open"):
        for item in stream if way == "loop" else stream.keep_open():
            got.append(item)
            if len(got) == COUNT:
                break
    while len(got) < COUNT:
        got += [stream.next(30)] if way == "next" else stream.poll()
