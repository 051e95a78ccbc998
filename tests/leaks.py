"""Checks that a test leaks nothing: streams, event loops, tasks, threads, descriptors, children, files.

`inventory()` lists the resources of the process. A fixture in conftest.py compares the inventory before a test with
the inventory after it, waits for resources that end by themselves, and fails the test with the names of the rest.
All functions run on the main thread, between tests. After `install()` other threads add to `_made`, which is atomic
under the GIL.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from os import listdir, readlink
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from sseqbridge import arequest_sse, request_sse, run
from sseqbridge._engine import bridge as engine_bridge
from sseqbridge._engine import caller_loops
from sseqbridge._engine.channel import post
from sseqbridge._engine.loop_state import LoopState
from sseqbridge._http.transport import Transport
from sseqbridge._streams import bridge
from sseqbridge._streams.merge import AsyncMergedStreams, MergedStreams
from sseqbridge._streams.stream import BaseStream, reader_of
from sseqbridge.testing import SSEServer
from tests.loops import SHARED_LOOPS

__all__ = [
    "WAIT_SECONDS",
    "Resource",
    "close_streams",
    "describe",
    "install",
    "inventory",
    "left_behind",
    "shared",
    "start_shared",
]

# How long a resource may outlive the test that made it.
WAIT_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 0.05
# Most resources end by themselves within the first period. The garbage collector runs after it, and repeatedly.
_COLLECT_AFTER_SECONDS = 0.02
_COLLECT_AGAIN_SECONDS = 1.0

_POOL_THREADS = ("AnyIO worker thread", "asyncio_")

_TESTS = Path(__file__).parent
_DESCRIPTORS = Path("/proc/self/fd")

# Where each living stream and event loop was created.
_made: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


class Resource(NamedTuple):
    """One resource. `key` is equal for the same resource, and for no other."""

    kind: str
    key: Any


# Resources that outlive the test in which they were made, by the scope to which they belong.
_shared: dict[str, set[Resource]] = {"class": set(), "module": set(), "package": set(), "session": set()}


def install() -> None:
    """From now on, record where streams and event loops are created."""
    kinds: list[type] = [BaseStream, MergedStreams, AsyncMergedStreams, asyncio.BaseEventLoop]
    with contextlib.suppress(ImportError):
        import uvloop

        kinds.append(uvloop.Loop)
        # libuv's pipe for signals, which belongs to the process, comes with the first loop.
        uvloop.new_event_loop().close()
    for kind in kinds:
        kind.__init__ = _recording(kind.__init__)  # type: ignore[misc]


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    def recording(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        _made[self] = _test_line(sys._getframe(1))

    return recording


def _test_line(frame: FrameType | None) -> str:
    """Return the innermost line of the tests that led to a frame; without one, the line of the frame."""
    innermost = frame
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(f"{_TESTS}{os.sep}") or os.path.basename(path).startswith("test_"):
            return _line(frame)
        frame = frame.f_back
    return "unknown" if innermost is None else _line(innermost)


def _line(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"


@contextlib.contextmanager
def shared(scope: str = "module") -> Iterator[None]:
    """Let the resources that are made in the block outlive the current test; they belong to `scope`."""
    before = inventory()
    try:
        yield
    finally:
        _shared[scope] |= inventory() - before


def start_shared() -> None:
    """Start the resources that all tests share: the process's bridges, with their threads, loops and descriptors."""
    if bridge.default_bridge()._state is None or bridge.async_bridge()._state is None:
        # Requests, since uvloop opens some descriptors with the first connection.
        with shared("session"), SSEServer([]) as server:
            assert list(request_sse(server.url).events) == []
            assert run(partial(_read_asynchronously, server.url)) == []


async def _read_asynchronously(url: str) -> list[Any]:
    SHARED_LOOPS.add(asyncio.get_running_loop())
    response = await arequest_sse(url)
    return await response.events.collect()


def left_behind(before: set[Resource], scope: str = "function", *, but: Iterable[str] = ()) -> list[str]:
    """Return descriptions of the resources that were made since `before` and have not ended.

    Waits up to WAIT_SECONDS for them to end. `scope` is the scope that ends now: resources of wider scopes may stay,
    and so may those of the kinds in `but`.
    """
    scopes = list(_shared)
    wider = scopes[scopes.index(scope) + 1 :] if scope in scopes else scopes
    known = before.union(*(_shared[each] for each in wider))
    if scope in _shared:
        _shared[scope].clear()
    if not inventory() - known:
        return []
    is_shared = _belongs_to_shared(known)

    def still_there() -> set[Resource]:
        return {resource for resource in inventory() - known if resource.kind not in but and not is_shared(resource)}

    started_at = time.monotonic()
    collect_at = started_at + _COLLECT_AFTER_SECONDS
    pause = 0.001
    while left := still_there():
        if any(resource.kind == "descriptor" for resource in left):
            # Each time: a connection that is in use may become idle.
            _close_idle_connections()
        if time.monotonic() >= collect_at:
            # Resources in reference cycles raise their ResourceWarning here, in the test that made them.
            gc.collect()
            collect_at = time.monotonic() + _COLLECT_AGAIN_SECONDS
        elif time.monotonic() >= started_at + WAIT_SECONDS:
            break
        else:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    # Report them only once, not again at the end of the module.
    _shared["session"] |= inventory() - known
    return sorted(map(describe, left))


def _belongs_to_shared(known: set[Resource]) -> Callable[[Resource], bool]:
    """Return whether a resource is a connection, a task or a thread of a server that outlives the test.

    Clients of such a server, in other processes, may keep idle connections. Tasks of the process's bridges are not
    shared.
    """
    states = [each._state for each in (bridge._default, bridge._async) if each is not None]
    bridge_loops = {state.loop for state in states if state is not None}
    loops = {resource.key() for resource in known if resource.kind == "event loop"} - bridge_loops
    pairs = [_ports(resource.key) for resource in known if resource.kind == "descriptor"]
    ports = {own for own, peer in pairs if own and not peer}

    def belongs(resource: Resource) -> bool:
        if resource.kind == "task":
            task = resource.key()
            return task is None or task.get_loop() in loops
        if resource.kind == "descriptor":
            own, peer = _ports(resource.key)
            return own in ports and peer > 0
        # Threads of a pool end with the loop that they work for.
        return resource.kind == "thread" and bool(loops) and resource.key.name.startswith(_POOL_THREADS)

    return belongs


def close_streams(before: set[Resource]) -> None:
    """Close the streams that were made since `before`, by a test that failed, and do not report its leaks."""
    left = inventory() - before
    _shared["session"] |= left
    for resource in left:
        stream = resource.key() if resource.kind == "stream" else None
        if isinstance(stream, BaseStream):
            reader_of(stream).abort()
        elif stream is not None:
            stream.close()


# The inventory.


def inventory() -> set[Resource]:
    """Return the resources that the process has now."""
    return {*_streams_and_loops(), *_tasks(), *_threads(), *_descriptors(), *_children(), *_files()}


def _streams_and_loops() -> Iterator[Resource]:
    for reference in _made.keyrefs():
        made = reference()
        if isinstance(made, asyncio.AbstractEventLoop):
            if not made.is_closed():
                yield Resource("event loop", reference)
        elif made is not None and _is_open(made):
            yield Resource("stream", reference)


def _is_open(stream: Any) -> bool:
    if isinstance(stream, BaseStream):
        cursor = reader_of(stream).cursor
        return cursor.is_open and not cursor.subscription.is_inherited
    return bool(len(stream._merger)) and not stream._merger.is_closed


def _tasks() -> Iterator[Resource]:
    for reference in _made.keyrefs():
        loop = reference()
        if isinstance(loop, asyncio.AbstractEventLoop):
            for task in asyncio.all_tasks(loop):
                yield Resource("task", weakref.ref(task))


def _threads() -> Iterator[Resource]:
    for thread in threading.enumerate():
        yield Resource("thread", thread)


def _descriptors() -> Iterator[Resource]:
    # listdir and readlink are imported by name: in `os`, the guard of conftest.py replaces them by slower functions.
    if not _DESCRIPTORS.exists():
        return
    for number in listdir(_DESCRIPTORS):
        try:
            target = readlink(f"{_DESCRIPTORS}/{number}")
        except FileNotFoundError:
            continue  # Closed in the meantime by another thread, or by the listing itself.
        yield Resource("descriptor", (int(number), target))


def _children() -> Iterator[Resource]:
    if not _has_children():
        return
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            pids = path.read_text("ascii").split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # The thread has ended.
        for pid in pids:
            yield Resource("child process", int(pid))


def _has_children() -> bool:
    try:
        # WNOWAIT: the exit status of an ended child stays available to its owner.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _files() -> Iterator[Resource]:
    for name in listdir(tempfile.gettempdir()):
        yield Resource("temporary file", name)


# Descriptions.


def describe(resource: Resource) -> str:
    """Return a description of a resource, with the place where it was made if it is known."""
    return f"{resource.kind} {_DESCRIPTIONS[resource.kind](resource.key)}"


def _describe_made(reference: weakref.ref[Any]) -> str:
    made = reference()
    return "that has been collected" if made is None else f"{made!r}, made at {_made.get(made, 'unknown')}"


def _describe_task(reference: weakref.ref[asyncio.Task[Any]]) -> str:
    return repr(reference())


def _describe_thread(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return f"{thread.name!r}, now at {_test_line(frame)}"


def _describe_descriptor(key: tuple[int, str]) -> str:
    number, target = key
    with _duplicate(key) as duplicate:
        if duplicate is None:
            return f"{number}: {target}"
        peer = _peer_name(duplicate)
        connected = "not connected" if peer is None else f"connected to {peer}"
        return f"{number}: {duplicate.family.name} socket at {duplicate.getsockname()}, {connected}"


@contextlib.contextmanager
def _duplicate(key: tuple[int, str]) -> Iterator[socket.socket | None]:
    """Yield a duplicate of a descriptor, None if it is not a socket or was closed."""
    number, target = key
    try:
        copy = os.dup(number) if target.startswith("socket:") else -1
    except OSError:
        copy = -1
    if copy < 0:
        yield None
        return
    try:
        duplicate = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        yield None
        return
    with duplicate:
        yield duplicate


def _peer_name(connection: socket.socket) -> Any:
    try:
        return connection.getpeername()
    except OSError:
        return None


def _ports(key: tuple[int, str]) -> tuple[int, int]:
    """Return the ports of a TCP socket and of its peer; 0 for one that does not exist."""
    with _duplicate(key) as duplicate:
        if duplicate is None or duplicate.family not in (socket.AF_INET, socket.AF_INET6):
            return 0, 0
        peer = _peer_name(duplicate)
        return duplicate.getsockname()[1], 0 if peer is None else peer[1]


def _describe_child(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return f"{pid}, which has ended"
    return f"{pid}: {' '.join(command.split())[:200] or 'ended, and was not waited for'}"


def _describe_file(name: str) -> str:
    return str(Path(tempfile.gettempdir(), name))


_DESCRIPTIONS: dict[str, Callable[[Any], str]] = {
    "stream": _describe_made,
    "event loop": _describe_made,
    "task": _describe_task,
    "thread": _describe_thread,
    "descriptor": _describe_descriptor,
    "child process": _describe_child,
    "temporary file": _describe_file,
}


# Loops keep idle connections for 4 s; those of httpx's pool stay open until the next request of the pool.


def _close_idle_connections() -> None:
    """Close the idle connections of every loop that runs, without waiting."""
    for state in _running_states():
        post(state.loop, _close_idle_on_loop, state)


def _running_states() -> Iterator[LoopState]:
    with engine_bridge._bridges_lock.native:
        bridges = tuple(engine_bridge._bridges)
    for state in (each._state for each in bridges):
        if state is not None:
            yield state
    for loop, state in caller_loops._states.copy().items():
        if loop.is_running():
            yield state


def _close_idle_on_loop(state: LoopState) -> None:
    for clients in (state.clients, *state._owned_clients.copy().values()):
        for client in clients._made_clients.copy():
            for transport in (getattr(client.http, "_transport", None), *getattr(client.http, "_mounts", {}).values()):
                if isinstance(transport, Transport):
                    _close_idle_connections_of(transport)
                for plain in transport._plain.values() if isinstance(transport, Transport) else [transport]:
                    for connection in getattr(getattr(plain, "_pool", None), "connections", ()):
                        if connection.is_idle():
                            _closing.add(task := state.loop.create_task(connection.aclose()))
                            task.add_done_callback(_closing.discard)


# Keeps the tasks alive: a loop refers to its tasks weakly.
_closing: set[asyncio.Task[None]] = set()


def _close_idle_connections_of(transport: Transport) -> None:
    for connections in transport._idle.values():
        while connections:
            connections.pop().abort()
    while transport._reserved:
        transport._reserved.popitem()[1].abort()
