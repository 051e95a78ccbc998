"""Streams with random faults: the plan of each, and an upstream and a proxy that follow the plans.

`python -m tests.engine.faults SEED` is their process. Invariant: every random choice is in a stream's `Plan`, which
follows from the seed and the stream's number; consumer, upstream and proxy each compute it, and share nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import functools
import itertools
import json
import random
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

__all__ = ["DONE", "Fault", "Plan", "Response", "main", "plan_of", "signed"]

T = TypeVar("T")

DONE = "[DONE]"

Pace: TypeAlias = Literal["plain", "delay", "split", "merge", "throttle"]
Ending: TypeAlias = Literal["whole", "cut", "reset", "corrupt", "silence"]
Framing: TypeAlias = Literal["chunked", "length", "close"]
Behaviour: TypeAlias = Literal[
    "read", "collect", "next", "poll", "nested", "keep open", "stall",
    "break", "close", "close elsewhere", "cancel", "drop", "raise", "reconnect",
]  # fmt: skip

# Characters of one to four bytes, so that cuts hit the middle of characters.
_TEXT = "The quick brown fox jumps over the lazy dog. Zwölf Boxkämpfer; 春眠不觉晓 🦊 "
_READ_BYTES = 1 << 20
# The most pieces of a response, and the most if a pause follows each.
_PIECES, _STEPS = 24, 8
_NO_PAUSES = itertools.repeat(0.0)


class Fault(NamedTuple):
    """The fault of one response between upstream and client.

    `pace` is the speed of its bytes, with pauses of `seconds`; `ending` is the event after `at` bytes: a FIN, a RST, no
    further byte, or `noise` in place of the next bytes.
    """

    pace: Pace = "plain"
    ending: Ending = "whole"
    at: int = 0
    seconds: float = 0.0
    noise: bytes = b""


class Response(NamedTuple):
    """A response's bytes, the length of its head, and the offsets at which its events are complete.

    In a compressed body an event may be complete somewhat sooner.
    """

    data: bytes
    head: int
    ends: list[int]

    def arrived(self, at: int) -> int:
        """Return how many events are complete in the first `at` bytes, including `[DONE]`."""
        return sum(end <= at for end in self.ends)


@dataclass(frozen=True)
class Plan:
    """One stream: the response of its upstream, the faults on the way, and its consumer.

    `faults` has one fault for each of the first connections; later connections have none. The consumer takes `take`
    items, then follows `behaviour`; a wait lasts `seconds`.
    """

    number: int
    has_body: bool
    framing: Framing
    is_compressed: bool
    closes: bool
    is_written_in_pieces: bool
    line_end: bytes
    chunk_bytes: int
    items: list[list[Any]] = field(repr=False)
    done: Literal["data", "function", "none"]
    require_done: bool
    reconnects: bool
    faults: tuple[Fault, ...]
    behaviour: Behaviour
    take: int
    seconds: float
    decode: Literal["json", "text", "event", "function"]
    limit: Literal["read", "idle", "total"]
    max_buffered_bytes: int

    @functools.cached_property
    def response(self) -> Response:
        """The response to a request for the whole stream."""
        return self.response_from(0)

    def response_from(self, start: int) -> Response:
        """Return the response to a request that resumes at this item."""
        if start and start >= len(self.items) and self.done != "data":
            head = b"HTTP/1.1 204 No Content\r\n\r\n"
            return Response(head, len(head), [])
        frames = [self._frame(item) for item in self.items[start:]]
        if self.done == "data":
            frames.append(b"data: " + DONE.encode() + self.line_end * 2)
        body, ends = _compressed(frames) if self.is_compressed else _joined(frames, self.line_end)
        framing = {"chunked": b"Transfer-Encoding: chunked", "length": b"Content-Length: %d" % len(body), "close": b""}
        fields = [b"HTTP/1.1 200 OK", b"Content-Type: text/event-stream", framing[self.framing]]
        fields += [b"Content-Encoding: gzip"] * self.is_compressed + [b"Connection: close"] * self.closes
        head = b"\r\n".join([field for field in fields if field]) + b"\r\n\r\n"
        if self.framing == "chunked":
            body, ends = _chunked(body, ends, self.chunk_bytes)
        return Response(head + body, len(head), [len(head) + end for end in ends])

    def _frame(self, item: list[Any]) -> bytes:
        number = item[0]
        lines = [] if number % 4 else [b": heartbeat", b""]
        lines += [b"id: %d" % number, *(b"data: " + line for line in _lines(item, number)), b"", b""]
        return self.line_end.join(lines)

    def fault(self, attempt: int) -> Fault:
        """Return the fault of the response on the stream's nth connection, from 0."""
        return self.faults[attempt] if attempt < len(self.faults) else Fault()


def signed(number: int, text: str) -> list[Any]:
    """Return an item with a checksum as its last part."""
    return [number, text, zlib.crc32(f"{number}{text}".encode())]


def _lines(item: list[Any], number: int) -> list[bytes]:
    data = json.dumps(item, ensure_ascii=False).encode()
    # JSON takes a line break between a list's items.
    return data.split(b" ", 1) if number % 3 == 1 else [data]


def _joined(frames: list[bytes], line_end: bytes) -> tuple[bytes, list[int]]:
    ends, length = [], 0
    for frame in frames:
        length += len(frame)
        # The CR of the blank line completes the event, without the LF.
        ends.append(length - (line_end == b"\r\n"))
    return b"".join(frames), ends


def _compressed(frames: list[bytes]) -> tuple[bytes, list[int]]:
    compressor = zlib.compressobj(1, wbits=16 + zlib.MAX_WBITS)
    body, ends = bytearray(), []
    for frame in frames:
        body += compressor.compress(frame) + compressor.flush(zlib.Z_SYNC_FLUSH)
        ends.append(len(body))
    return bytes(body) + compressor.flush(), ends


def _chunked(body: bytes, ends: list[int], size: int) -> tuple[bytes, list[int]]:
    wire, on_wire, pending = bytearray(), [], collections.deque(ends)
    for begin in range(0, len(body), size):
        chunk = body[begin : begin + size]
        wire += b"%x\r\n" % len(chunk)
        while pending and pending[0] <= begin + len(chunk):
            on_wire.append(len(wire) + pending.popleft() - begin)
        wire += chunk + b"\r\n"
    return bytes(wire) + b"0\r\n\r\n", on_wire


# With weights.
_ENDINGS: dict[Ending, int] = {"whole": 9, "cut": 4, "reset": 4, "corrupt": 3, "silence": 1}
_PACES: dict[Pace, int] = {"plain": 3, "delay": 1, "merge": 1, "throttle": 1, "split": 2}
_READERS: list[Behaviour] = ["read", "read", "read", "collect", "next", "poll", "nested", "keep open", "stall"]
_LEAVERS: list[Behaviour] = ["break", "close", "close elsewhere", "cancel", "drop", "raise"]


def plan_of(seed: int, number: int) -> Plan:
    """Return a random plan for a stream."""
    chance = random.Random(f"{seed} {number}")
    count, size = chance.choice((0, 1, 1, 2, 3, 5, 8, 20)), chance.choice((0, 10, 100, 1000))
    if chance.random() < 0.03:
        count, size = chance.randint(1, 4), chance.choice((10_000, 70_000, 300_000))
    reconnects = chance.random() < 0.2
    framing: Framing = chance.choice(("chunked", "chunked", "chunked", "length", "close"))
    done: Literal["data", "function", "none"] = chance.choice(("data", "data", "data", "function", "none"))
    if reconnects or done == "function":
        # An empty stream has no ID that marks its end.
        count = max(count, 1)
    has_body = chance.random() < 0.5
    if reconnects and has_body and framing == "close":
        # A clean end of a POST does not reconnect, and with this framing a cut looks like a clean end.
        framing = "chunked"
    behaviour: Behaviour = chance.choice(_READERS if chance.random() < 0.6 else _LEAVERS)
    if reconnects and chance.random() < 0.2:
        behaviour = "reconnect"
    plan = Plan(
        number=number,
        has_body=has_body,
        framing=framing,
        is_compressed=chance.random() < 0.1,
        closes=framing == "close" or chance.random() < 0.1,
        is_written_in_pieces=chance.random() < 0.3,
        line_end=chance.choice((b"\n", b"\n", b"\r\n", b"\r")),
        chunk_bytes=max(chance.choice((7, 60, 400, 5000)), count * size // 50),
        items=[signed(n, f"{number} " + (_TEXT * (size // 20 + 1))[:size]) for n in range(count)],
        done=done,
        require_done=done == "data" and chance.random() < 0.5,
        reconnects=reconnects,
        faults=(),
        behaviour=behaviour,
        take=chance.randint(0, count),
        seconds=chance.choice((0.001, 0.003, 0.01)),
        decode=chance.choice(("json", "json", "text", "event", "function")),
        limit=chance.choice(("read", "idle") if reconnects else ("read", "idle", "total")),
        max_buffered_bytes=chance.choice((1024 * 1024, 1024 * 1024, 2000, 1)),
    )
    connections = chance.randint(1, 4) if reconnects else 1
    object.__setattr__(plan, "faults", tuple(_fault(chance, plan) for _ in range(connections)))
    return plan


def _fault(chance: random.Random, plan: Plan) -> Fault:
    ending = _chosen(chance, _ENDINGS)
    if plan.reconnects and ending == "corrupt":
        # A changed ID would resume another stream.
        ending = "cut"
    data, head, _ = plan.response
    at = chance.choice((chance.randint(0, head), chance.randint(0, len(data)), chance.randint(head, len(data))))
    if chance.random() < 0.1:
        at = len(data)
    if ending == "silence":
        # After a complete response, the fault would hit the next stream.
        starts = range(len(plan.items) + 1) if plan.reconnects else [0]
        whole = {len(plan.response_from(start).data) for start in starts}
        while at in whole:
            at -= 1
    noise = chance.randbytes(chance.choice((1, 1, 1, 4)))
    return Fault(_chosen(chance, _PACES), ending, at, chance.choice((0.0005, 0.002, 0.01)), noise)


def _chosen(chance: random.Random, weights: dict[T, int]) -> T:
    return chance.choices(list(weights), list(weights.values()))[0]


class _Request(NamedTuple):
    data: bytes
    path: bytes
    start: int

    @property
    def number(self) -> int:
        """The stream's."""
        return int(self.path.split(b"/")[1])

    @property
    def lasts(self) -> float:
        """The duration of the response in seconds; 0 for no minimum."""
        return int(self.path.split(b"/")[3]) / 1000


async def _received(reader: asyncio.StreamReader) -> _Request | None:
    """Return the next request, None at the end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        body = await reader.readexactly(int(fields.get(b"content-length", 0)))
    except (asyncio.IncompleteReadError, OSError):
        return None
    return _Request(head + body, head.split(b" ", 2)[1], int(fields.get(b"last-event-id", -1)) + 1)


class _Upstream:
    """Answers each request by its stream's plan."""

    def __init__(self, seed: int) -> None:
        self.plan_of = functools.lru_cache(maxsize=256)(functools.partial(plan_of, seed))

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while (request := await _received(reader)) is not None:
                plan = self.plan_of(request.number)
                response = plan.response_from(request.start) if request.start else plan.response
                # (The proxy makes the pauses of long responses.)
                in_pieces = plan.is_written_in_pieces and not request.lasts
                await _write(writer, response.data, len(response.data) // _PIECES + 1 if in_pieces else _READ_BYTES)
                if plan.closes:
                    break


async def _write(writer: asyncio.StreamWriter, data: bytes, size: int, pauses: Iterator[float] = _NO_PAUSES) -> None:
    """Write pieces of this size, with an iteration of the event loop or a pause after each."""
    for begin in range(0, len(data), size):
        writer.write(data[begin : begin + size])
        await writer.drain()
        if begin + size < len(data):
            await asyncio.sleep(next(pauses))


class _Link:
    """One connection through the proxy: the fault of the current response, and its progress."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.begin(Fault(), 0)

    def begin(self, fault: Fault, lasts: float) -> None:
        """Set the fault, and the least duration, of the next response."""
        if lasts:
            fault = fault._replace(pace="throttle", seconds=lasts / _STEPS)
        self._fault, self._passed = fault, 0
        # At most this many pauses, regardless of the number of reads.
        self._pauses = itertools.chain([fault.seconds] * _STEPS, _NO_PAUSES)

    async def pass_on(self, reader: asyncio.StreamReader) -> bool:
        """Forward the next bytes; return False at the end."""
        if self._fault.pace == "merge":
            await asyncio.sleep(self._fault.seconds)
        data = await reader.read(_READ_BYTES)
        fault, at = self._fault, self._fault.at - self._passed
        self._passed += len(data)
        if fault.pace == "delay":
            await asyncio.sleep(fault.seconds)
        if fault.ending == "corrupt" and at < len(data):
            noise = fault.noise[max(-at, 0) : len(data) - at]
            data = data[: max(at, 0)] + noise + data[max(at, 0) + len(noise) :]
        ends = fault.ending in ("cut", "reset", "silence") and (at <= len(data))
        await self._pace(data[:at] if ends else data)
        if ends and fault.ending == "reset":
            # uvloop writes at the end of its iteration.
            await asyncio.sleep(0)
            linger = struct.pack("ii", 1, 0)
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._writer.transport.abort()
        if ends and fault.ending == "silence":
            await asyncio.get_running_loop().create_future()
        return bool(data) and not ends

    async def _pace(self, data: bytes) -> None:
        if self._fault.pace == "split":
            await _write(self._writer, data, len(data) // _PIECES + 1)
        elif self._fault.pace == "throttle":
            await _write(self._writer, data, len(data) // _STEPS + 1, self._pauses)
        else:
            await _write(self._writer, data, _READ_BYTES)


class _Proxy:
    """Forwards connections to the upstream, and its responses with their faults. `open` counts connections."""

    def __init__(self, upstream: _Upstream, port: int) -> None:
        self._plan_of = upstream.plan_of
        self._port = port
        self._attempts: collections.Counter[bytes] = collections.Counter()
        self.open = 0

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._port)
        link = _Link(writer)
        ways = {
            asyncio.create_task(self._ask(link, reader, upstream)),
            asyncio.create_task(self._send_response(link, upstream_reader)),
        }
        # One of the two sides has closed.
        _, others = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in others:
            way.cancel()
        upstream.close()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self.open -= 1

    async def _ask(self, link: _Link, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter) -> None:
        while (request := await _received(reader)) is not None:
            link.begin(self._plan_of(request.number).fault(self._attempts[request.path]), request.lasts)
            self._attempts[request.path] += 1
            upstream.write(request.data)

    async def _send_response(self, link: _Link, reader: asyncio.StreamReader) -> None:
        # (uvloop raises RuntimeError for a write to a lost connection.)
        with contextlib.suppress(OSError, RuntimeError):
            while await link.pass_on(reader):
                pass


async def _serve(seed: int) -> None:
    upstream = _Upstream(seed)
    behind = await asyncio.start_server(upstream.converse, "127.0.0.1", backlog=4096)
    proxy = _Proxy(upstream, behind.sockets[0].getsockname()[1])
    front = await asyncio.start_server(proxy.converse, "127.0.0.1", backlog=4096)
    print(front.sockets[0].getsockname()[1], flush=True)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def serve_counts() -> None:
        for _ in sys.stdin:
            print(proxy.open, flush=True)
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=serve_counts, daemon=True).start()
    await ended.wait()


def _uvloop() -> ModuleType | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop


def main() -> None:
    """Print the proxy's port, then the number of open connections for each line of standard input."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.faults", description=__doc__)
    parser.add_argument("seed", type=int)
    seed = parser.parse_args().seed
    uvloop = _uvloop()
    (asyncio if uvloop is None else uvloop).run(_serve(seed))


if __name__ == "__main__":
    main()
