"""The steps that an SSEServer plays, the scripts that consist of them, and the requests that it receives.

Steps are immutable values that describe an action; the server performs it. The loop thread of the server calls the
scripts and writes the fields of a ReceivedRequest; any thread may read them.
"""

from __future__ import annotations

import http.client
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from json import dumps, loads
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from sseqbridge._checks import is_number
from sseqbridge._exceptions import UsageError
from sseqbridge._runtime import loops
from sseqbridge._runtime.clock import clock
from sseqbridge._sse.encoder import StreamEncoder, encode
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge._sse.recording import CUT, Recorded, read_recording

__all__ = [
    "BY_HAND",
    "IMPLIED",
    "Expect",
    "Hold",
    "Leave",
    "ReceivedRequest",
    "Respond",
    "Script",
    "Step",
    "Wait",
    "Wire",
    "as_script",
    "blocked_loop",
    "comment",
    "cut",
    "expect",
    "hold",
    "in_turn",
    "raw",
    "recording",
    "reset",
    "respond",
    "send",
    "silence",
    "wait",
    "wire",
]

# The default of what is not checked, or not sent: no JSON value, and short in help().
_UNCHECKED: Any = ...

_Framing: TypeAlias = Literal["chunked", "length", "close", "none"]


@dataclass(frozen=True, slots=True)
class Respond:
    """Sends the head of the response, and `body`, if it is all of the body.

    `length` None with framing "length" buffers the body to measure it.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    framing: _Framing
    length: int | None
    body: bytes = b""

    @property
    def is_buffered(self) -> bool:
        """Whether the body is buffered until the script has ended."""
        return self.framing == "length" and self.length is None

    def head(self) -> bytes:
        """Return the head as bytes."""
        framing = {
            "chunked": ["Transfer-Encoding: chunked"],
            "length": [f"Content-Length: {self.length}"],
            "close": ["Connection: close"],
            "none": [],
        }[self.framing]
        start = f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, '')}"
        lines = [start, *(f"{name}: {value}" for name, value in self.headers), *framing, "", ""]
        return "\r\n".join(lines).encode("latin-1")


@dataclass(frozen=True, slots=True)
class Wire:
    """Sends bytes outside of the body."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Waits for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hold:
    """Waits for a flag; None is the server's own, which SSEServer.release() sets."""

    flag: threading.Event | None


@dataclass(frozen=True, slots=True)
class Leave:
    """Sends `part` of the body, then closes or resets the connection."""

    reset: bool
    part: bytes = b""


@dataclass(frozen=True, slots=True)
class Expect:
    """Compares facts of the request: (name, function of the request, expected value)."""

    facts: tuple[tuple[str, Callable[[ReceivedRequest], Any], Any], ...]

    def check(self, request: ReceivedRequest) -> None:
        """Raise AssertionError if a fact differs."""
        for name, get, value in self.facts:
            if get(request) != value:
                raise AssertionError(f"{request!r}: {name} is {get(request)!r}, and {value!r} was expected")


IMPLIED = Respond(200, (("Content-Type", "text/event-stream"),), "chunked", None)
BY_HAND = Respond(200, (), "none", None)

Step: TypeAlias = Respond | Wire | Wait | Hold | Leave | Expect | ServerSentEvent | Comment | bytes


def _pairs_of(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    if isinstance(headers, (str, bytes)):
        hint = "The body is the next step: respond(...), raw(body)."
        raise UsageError(f"`headers` must be a mapping or pairs, got {type(headers).__name__}. {hint}")
    return tuple(headers.items() if isinstance(headers, Mapping) else headers)


def respond(
    status: int = 200,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    framing: _Framing = "chunked",
    content_type: str | None = "text/event-stream",
    *,
    length: int | None = None,
    json: Any = _UNCHECKED,
) -> Step:
    """Send the head of the response. A Content-Type in `headers` overrides `content_type`; None sends none.

        SSEServer([respond(401, json={"error": {"message": "no key"}})])

    `status` is an int; `headers` are a mapping or pairs.

    With `json=` the response is that object as application/json, whole: respond(401, json={"error": "no key"}). Steps
    after it send nothing more.

    `framing` determines how the client finds the end of the body. "chunked": one chunk per step. "length": the body
    is buffered until the script ends, to measure it; with `length=` that length is announced and the body sent step
    by step, and if its size differs, the connection is closed. "close": the connection is closed after it. "none":
    no header is added and nothing marks the end; use it with framing `headers` of your own, correct or wrong. The
    statuses 204 and 304 have no body and always use "none".

    Raises UsageError for a `status` that is not an int from 100 to 999, a str or bytes as `headers`, an unknown
    `framing`, and for `json` together with `framing` or `length` (in bytes).
    """
    if not isinstance(status, int) or not 100 <= status <= 999:
        raise UsageError(f"`status` must be an int from 100 to 999, got {status!r}")
    if framing not in get_args(_Framing):
        raise UsageError(f"`framing` must be one of {', '.join(get_args(_Framing))}, got {framing!r}")
    pairs = _pairs_of(headers)
    body = b""
    if json is not _UNCHECKED:
        if framing != "chunked" or length is not None:
            raise UsageError("`json` must come without `framing` and `length`, since its own length is sent")
        body = dumps(json).encode()
        framing, length = "length", len(body)
        content_type = "application/json" if content_type == "text/event-stream" else content_type
    if content_type is not None and all(name.lower() != "content-type" for name, _ in pairs):
        pairs = (("Content-Type", content_type), *pairs)
    if status in (204, 304):
        framing, length, body = "none", None, b""
    return Respond(status, pairs, framing if length is None else "length", length, body)


def send(data: object, event: str | None = None, id: str | None = None, retry: float | None = None) -> Step:
    """Send one event. `data` is its text, or any other object, sent as JSON.

        SSEServer([send({"n": 1}, event="number", id="1"), send("[DONE]")])

    `event` is its type, `id` its ID, `retry` the reconnection time in seconds. Raises UsageError for values that an
    event cannot have.
    """
    text = data if isinstance(data, str) else dumps(data)
    return encode(ServerSentEvent("message" if event is None else event, text, id or "", retry))


def comment(text: str = "") -> Step:
    """Send one comment, `text`, as servers do for keep-alive.

        SSEServer([comment("keep-alive"), send("[DONE]")])

    Raises UsageError for a text of several lines.
    """
    return encode(Comment(text))


def raw(data: bytes) -> Step:
    """Send bytes of the body, `data`, unchanged, in one chunk. A bytes object is the same step.

        SSEServer([raw(b"data: {\\n\\n")])

    Raises nothing.
    """
    return data


def wire(data: bytes) -> Step:
    """Send bytes, `data`, to the socket without any framing. No head is implied after it.

        SSEServer([wire(b"HTTP/1.1 200 OK\\r\\n\\r\\n"), cut()])

    Raises nothing.
    """
    return Wire(data)


def wait(seconds: float) -> Step:
    """Wait for `seconds`.

        SSEServer([send(1), wait(0.5), send(2)])

    Raises UsageError for a value that is not a number of at least 0.
    """
    if not is_number(seconds) or not seconds >= 0:
        raise UsageError(f"`seconds` must be a number of at least 0, got {seconds!r}")
    return Wait(seconds)


def hold(flag: threading.Event | None = None) -> Step:
    """Wait until `flag` is set, by any thread, or without one until `SSEServer.release()` is called.

        SSEServer([send(1), hold(), send(2)])  # server.release() lets it continue

    Raises nothing.
    """
    return Hold(flag)


def silence() -> Step:
    """Wait until the client leaves.

        SSEServer([send(1), silence()])  # a stalled upstream

    Raises nothing.
    """
    return Wait(float("inf"))


def cut(within: Step = b"") -> Step:
    """Close the connection (FIN) before the end of the body. With `within`, send the first half of that event first.

        SSEServer([send(1), cut(send(2))])

    Raises UsageError if `within` is another kind of step.
    """
    if not isinstance(within, bytes):
        raise UsageError(
            f"`within` must be made by send(), comment() or raw(), got {type(within).__name__}. "
            "Put cut() after the step instead."
        )
    return Leave(reset=False, part=within[: len(within) // 2])


def reset() -> Step:
    """Reset the connection (RST). Bytes that the client has not read may be lost.

        SSEServer([send(1), reset()])

    Raises nothing.
    """
    return Leave(reset=True)


def expect(
    method: str | None = None,
    path: str | None = None,
    *,
    last_event_id: str | None = None,
    headers: Mapping[str, str | None] | None = None,
    json: Any = _UNCHECKED,
) -> Step:
    """Check the request. If it differs, reset the connection; close() raises AssertionError.

        SSEServer([expect("POST", "/chat", json={"prompt": "Hello"}), send("[DONE]")])

    `method` is in any case. `path` includes the query. `last_event_id` is the Last-Event-ID header, "" if there must be
    none. Each of `headers` must be equal, or absent if its value is None. `json` is the decoded body.

    Raises nothing itself.
    """
    facts: list[tuple[str, Callable[[ReceivedRequest], Any], Any]] = []
    if method is not None:
        facts.append(("the method", lambda request: request.method, method.upper()))
    if path is not None:
        facts.append(("the path", lambda request: request.path, path))
    if last_event_id is not None:
        facts.append(("Last-Event-ID", lambda request: request.last_event_id, last_event_id))
    for name, value in (headers or {}).items():
        facts.append((name, lambda request, name=name: request.headers.get(name.lower()), value))  # type: ignore[misc]
    if json is not _UNCHECKED:
        facts.append(("the body", lambda request: request.json(), json))
    return Expect(tuple(facts))


@dataclass(eq=False, repr=False)
class ReceivedRequest:
    """A request, and the state of its response. `SSEServer.requests` and `wait_for_request` return them.

        assert server.wait_for_request().json() == {"prompt": "Hello"}

    `method` is a str, `body` bytes. `path` includes the query. `header_pairs` are the headers as sent. `connection` is
    the number of the TCP connection, from 0. `aborted` is set if the client leaves before the script ends; `aborted_at`
    is the time of that, in seconds, by time.monotonic(). `finished` is set when the script has ended, for any reason.
    `sent_bytes` counts the bytes that the socket accepted, head and framing included, without a write that is still
    blocked.
    """

    method: str
    path: str
    header_pairs: list[tuple[str, str]]
    body: bytes
    connection: int
    sent_bytes: int = 0
    aborted_at: float | None = None
    aborted: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)

    def __repr__(self) -> str:
        path = self.path.partition("?")[0]
        return f"<ReceivedRequest {self.method} {path}, connection {self.connection}>"

    @property
    def headers(self) -> dict[str, str]:
        """The headers by lower-case name. Repeated headers are joined by commas."""
        headers: dict[str, str] = {}
        for name, value in self.header_pairs:
            key = name.lower()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        return headers

    @property
    def last_event_id(self) -> str:
        """The Last-Event-ID header, "" if there is none."""
        return self.headers.get("last-event-id", "").encode("latin-1").decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the body decoded as JSON. Raises json.JSONDecodeError (a ValueError)."""
        return loads(self.body)

    def wait_aborted(self, timeout: float = 5.0) -> float:
        """Wait until the client has left, and return `aborted_at`. Raises TimeoutError after `timeout` seconds.

        It blocks: in a coroutine call it by asyncio.to_thread.
        """
        if not self.aborted.wait(timeout) or self.aborted_at is None:
            raise TimeoutError(f"the client did not leave {self!r} within {timeout:g} s{blocked_loop()}")
        return self.aborted_at


def blocked_loop() -> str:
    """Return the end of the message of a wait that timed out: advice if it has blocked an event loop, else ""."""
    if not loops.in_coroutine():
        return ""
    return ". The wait has blocked the event loop of this thread: in a coroutine, call the method by asyncio.to_thread"


Script: TypeAlias = Callable[[ReceivedRequest], Iterable[Step]]


def as_script(script: Script | Iterable[Step]) -> Script:
    """Return a script that plays `script`, a script or a list of steps, for every request."""
    if callable(script):
        return script
    steps = tuple(script)
    return lambda request: steps


def in_turn(*scripts: Script | Iterable[Step]) -> Script:
    """Return a script that plays the first of `scripts` for the first request, and so on; then repeats the last.

        SSEServer(in_turn([respond(503)], [send(1), send("[DONE]")]))

    Raises UsageError without a script.
    """
    if not scripts:
        raise UsageError("in_turn() must be called with at least one script, got none")
    in_order = [as_script(script) for script in scripts]
    numbers = itertools.count()

    def script(request: ReceivedRequest) -> Iterable[Step]:
        return in_order[min(next(numbers), len(in_order) - 1)](request)

    return script


def recording(path: str | Path, *, speed: float = 1.0) -> Script:
    """Return a script that plays the file at `path`, written by `sseqbridge record`, with its timing.

        SSEServer(recording("chat.recording", speed=float("inf")))

    `speed` 2.0 is twice as fast, float("inf") plays without waits. A request with a Last-Event-ID in the recording
    gets the events after it, without the wait before them.

    Raises OSError if the file cannot be read, UsageError if it is not a recording.
    """
    if not speed > 0:
        raise UsageError(f"`speed` must be a number above 0, got {speed!r}")
    recorded = read_recording(Path(path))

    def script(request: ReceivedRequest) -> Iterator[Step]:
        start, entries = _after(recorded, request.last_event_id)
        encoder = StreamEncoder()
        yield respond()
        began = clock.monotonic()
        for entry in entries:
            # Relative to the start, so that the time that each step takes does not accumulate.
            yield wait(max(0.0, began + (entry.time - start) / speed - clock.monotonic()))
            if isinstance(entry.item, str):
                if entry.item == CUT:
                    yield cut()
            else:
                yield encoder.encode(entry.item)

    return script


def _after(recorded: list[Recorded], last_event_id: str) -> tuple[float, list[Recorded]]:
    """Return the entries after the event with an ID, and the time of that event; all, and 0, if there is none."""
    for number, entry in enumerate(recorded, 1):
        if last_event_id and isinstance(entry.item, ServerSentEvent) and entry.item.id == last_event_id:
            return entry.time, recorded[number:]
    return 0.0, recorded
