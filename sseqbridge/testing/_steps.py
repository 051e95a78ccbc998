"""What an SSEServer plays: steps, and the scripts that are made of them.

Rule: nothing here waits or knows a socket; a step says what to do, and the server does it.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from sseqbridge._exceptions import UsageError
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
    "chat_completions",
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

_ANYTHING: Any = object()

_Framing: TypeAlias = Literal["chunked", "length", "close", "none"]


@dataclass(frozen=True, slots=True)
class Respond:
    status: int
    headers: tuple[tuple[str, str], ...]
    framing: _Framing
    length: int | None

    @property
    def is_held(self) -> bool:
        return self.framing == "length" and self.length is None

    def head(self) -> bytes:
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
    data: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float


@dataclass(frozen=True, slots=True)
class Hold:
    flag: threading.Event


@dataclass(frozen=True, slots=True)
class Leave:
    reset: bool
    # What of the body goes out before it.
    part: bytes = b""


@dataclass(frozen=True, slots=True)
class Expect:
    wanted: tuple[tuple[str, Callable[[ReceivedRequest], Any], Any], ...]

    def check(self, request: ReceivedRequest) -> None:
        """Raise AssertionError where the request is another one."""
        for name, get, value in self.wanted:
            if get(request) != value:
                raise AssertionError(f"{request!r}: {name} is {get(request)!r}, and {value!r} was expected")


IMPLIED = Respond(200, (("Content-Type", "text/event-stream"),), "chunked", None)
BY_HAND = Respond(200, (), "none", None)

Step: TypeAlias = Respond | Wire | Wait | Hold | Leave | Expect | ServerSentEvent | Comment | bytes


def respond(
    status: int = 200,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    framing: _Framing = "chunked",
    content_type: str | None = "text/event-stream",
    *,
    length: int | None = None,
) -> Step:
    """Send the head of the answer. A Content-Type in `headers` goes before `content_type`; None sends none.

    `framing` says how the client finds the body's end. "chunked": one chunk a step. "length": the body is held
    until the script is over, to be counted; with `length=` it is sent as it comes, that many bytes announced, and
    one of another size ends with the connection. "close": it ends with the connection. "none": no header is added
    and nothing marks the end, for `headers` that do, or that lie; 204 and 304, which have no body, are always so.
    """
    if framing not in get_args(_Framing):
        raise UsageError(f"framing is one of {', '.join(get_args(_Framing))}, not {framing!r}")
    pairs = tuple(headers.items() if isinstance(headers, Mapping) else headers)
    if content_type is not None and all(name.lower() != "content-type" for name, _ in pairs):
        pairs = (("Content-Type", content_type), *pairs)
    if status in (204, 304):
        framing, length = "none", None
    return Respond(status, pairs, framing if length is None else "length", length)


def send(data: object, event: str | None = None, id: str | None = None, retry: float | None = None) -> Step:
    """Send one event; `data` is its text, or any other object, sent as JSON. `retry` is in seconds."""
    text = data if isinstance(data, str) else json.dumps(data)
    return encode(ServerSentEvent("message" if event is None else event, text, id or "", retry))


def comment(text: str = "") -> Step:
    """Send one comment, as servers do to keep a connection alive."""
    return encode(Comment(text))


def raw(data: bytes) -> Step:
    """Send bytes of the body as they are, in one chunk. Bytes alone are such a step too."""
    return data


def wire(data: bytes) -> Step:
    """Send bytes straight to the socket, outside of any framing. After it no head is implied."""
    return Wire(data)


def wait(seconds: float) -> Step:
    """Do nothing for so long."""
    return Wait(seconds)


def hold(flag: threading.Event) -> Step:
    """Do nothing until `flag` is set, from whichever thread."""
    return Hold(flag)


def silence() -> Step:
    """Do nothing until the client leaves."""
    return Wait(float("inf"))


def cut(within: Step = b"") -> Step:
    """Close the connection (FIN) without ending the body; `within` an event, after its first half."""
    if not isinstance(within, bytes):
        raise UsageError("cut() is within what send(), comment() or raw() make, or between two steps")
    return Leave(reset=False, part=within[: len(within) // 2])


def reset() -> Step:
    """Reset the connection (RST). What the client has not read may be lost with it."""
    return Leave(reset=True)


def expect(
    method: str | None = None,
    path: str | None = None,
    *,
    last_event_id: str | None = None,
    headers: Mapping[str, str | None] | None = None,
    json: Any = _ANYTHING,
) -> Step:
    """Check the request: where it is another one, reset the connection and have close() raise AssertionError.

    `path` holds the query too; `last_event_id` is what the request goes on from, "" for a request without one;
    of `headers` each has to be there, or not with None; `json` is the body, decoded.
    """
    wanted: list[tuple[str, Callable[[ReceivedRequest], Any], Any]] = []
    if method is not None:
        wanted.append(("the method", lambda request: request.method, method.upper()))
    if path is not None:
        wanted.append(("the path", lambda request: request.path, path))
    if last_event_id is not None:
        wanted.append(("Last-Event-ID", lambda request: request.last_event_id, last_event_id))
    for name, value in (headers or {}).items():
        wanted.append((name, lambda request, name=name: request.headers.get(name.lower()), value))  # type: ignore[misc]
    if json is not _ANYTHING:
        wanted.append(("the body", lambda request: request.json(), json))
    return Expect(tuple(wanted))


@dataclass(eq=False, repr=False)
class ReceivedRequest:
    """One request as it came in, and what became of its answer.

    `path` holds the query too, `header_pairs` each header as it was sent, `connection` the number of the TCP
    connection, from 0. `aborted` is set once the client left before the script was over, with `aborted_at`, a
    reading of time.monotonic(); `finished` once the script is over in whichever way. `sent_bytes` counts what the
    socket took, head and framing included; a write that waits for the client does not count yet.
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
        """The headers by lower-case name, those of one name joined by commas."""
        headers: dict[str, str] = {}
        for name, value in self.header_pairs:
            key = name.lower()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        return headers

    @property
    def last_event_id(self) -> str:
        """What the request goes on from, "" where it does not."""
        return self.headers.get("last-event-id", "").encode("latin-1").decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the body decoded as JSON. Raises json.JSONDecodeError (a ValueError)."""
        return json.loads(self.body)

    def wait_aborted(self, timeout: float = 5.0) -> float:
        """Wait until the client has left, and return `aborted_at`.

        Raises TimeoutError where it is still there after `timeout` seconds.
        """
        if not self.aborted.wait(timeout) or self.aborted_at is None:
            raise TimeoutError(f"the client did not leave {self!r} within {timeout:g} s")
        return self.aborted_at


Script: TypeAlias = Callable[[ReceivedRequest], Iterable[Step]]


def as_script(script: Script | Iterable[Step]) -> Script:
    """Return a script; a list of steps is played for every request."""
    if callable(script):
        return script
    played = tuple(script)
    return lambda request: played


def in_turn(*scripts: Script | Iterable[Step]) -> Script:
    """Return a script that answers the first request by the first one, and so on; the last one stays."""
    if not scripts:
        raise UsageError("in_turn() without a script: which is to be played?")
    played = [as_script(script) for script in scripts]
    numbers = itertools.count()

    def script(request: ReceivedRequest) -> Iterable[Step]:
        return played[min(next(numbers), len(played) - 1)](request)

    return script


def recording(path: str | Path, *, speed: float = 1.0) -> Script:
    """Return a script that plays what `sseqbridge record` has written, with its timing.

    `speed` 2.0 is twice as fast, float("inf") without waits. A request with a Last-Event-ID of the recording's gets
    what came after it, at once. Raises OSError for a file that cannot be read, UsageError for what is no recording.
    """
    if not speed > 0:
        raise UsageError(f"speed={speed!r}; it is a number above 0")
    recorded = read_recording(Path(path))

    def script(request: ReceivedRequest) -> Iterator[Step]:
        start, entries = _left_of(recorded, request.last_event_id)
        encoder = StreamEncoder()
        yield respond()
        began = clock.monotonic()
        for entry in entries:
            # By the clock, since what each step takes besides would add up.
            yield wait(max(0.0, began + (entry.time - start) / speed - clock.monotonic()))
            if isinstance(entry.what, str):
                if entry.what == CUT:
                    yield cut()
            else:
                yield encoder.encode(entry.what)

    return script


def _left_of(recorded: list[Recorded], last_event_id: str) -> tuple[float, list[Recorded]]:
    """Return what comes after an event, and the time of that."""
    for number, entry in enumerate(recorded, 1):
        if last_event_id and isinstance(entry.what, ServerSentEvent) and entry.what.id == last_event_id:
            return entry.time, recorded[number:]
    return 0.0, recorded


def chat_completions(answer: str | Iterable[str] | None = None, *, delay: float = 0.0, model: str = "echo") -> Script:
    """Return a script that speaks OpenAI's chat completions, streamed where the request asks for it.

    The answer is a text, sent word by word, or the tokens as given, or by default the last user message of the
    request; `delay` is in seconds, before each token. What is no such request gets status 400 and OpenAI's error
    object. Source: https://platform.openai.com/docs/api-reference/chat
    """
    fixed = answer if answer is None or isinstance(answer, str) else list(answer)

    def script(request: ReceivedRequest) -> Iterator[Step]:
        call = _chat_call(request)
        if call is None:
            message = "POST a JSON object with a list of messages"
            error = {"message": message, "type": "invalid_request_error", "param": "messages", "code": None}
            yield from _json_response(400, {"error": error})
            return
        reply = _last_user_text(call["messages"]) if fixed is None else fixed
        tokens = re.findall(r"\S+\s*|\s+", reply) if isinstance(reply, str) else reply
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        if call.get("stream"):
            yield from _chat_chunks(about, tokens, delay)
        else:
            yield wait(delay * len(tokens))
            yield from _json_response(200, _chat_completion(about, tokens))

    return script


def _chat_call(request: ReceivedRequest) -> dict[str, Any] | None:
    try:
        call = request.json()
    except ValueError:
        return None
    takes = request.method == "POST" and isinstance(call, dict) and isinstance(call.get("messages"), list)
    return call if takes else None


def _last_user_text(messages: list[Any]) -> str:
    texts = [""] + [_text(said) for said in messages if isinstance(said, dict) and said.get("role") == "user"]
    return texts[-1]


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)


def _chat_chunks(about: dict[str, Any], tokens: list[str], delay: float) -> Iterator[Step]:
    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> Step:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return send({**about, "object": "chat.completion.chunk", "choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    for token in tokens:
        yield wait(delay)
        yield chunk({"content": token})
    yield chunk({}, "stop")
    yield send("[DONE]")


def _chat_completion(about: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(tokens), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": len(tokens), "total_tokens": len(tokens)}
    return {**about, "object": "chat.completion", "choices": [choice], "usage": usage}


def _json_response(status: int, body: dict[str, Any]) -> Iterator[Step]:
    yield respond(status, framing="length", content_type="application/json")
    yield raw(json.dumps(body).encode())
