"""A response as the engine passes it on: its head, the body of a refusal, and where body bytes are read from.

Used on the loop thread; Head and Body are immutable, and cross to consumers.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime, timezone
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import httpx

from sseqbridge._exceptions import ContentTypeError, ProtocolError, SSEError, StatusError
from sseqbridge._http.bounded_bodies import BODY_SECONDS, MAX_BODY_BYTES, unbounded_stream
from sseqbridge._http.connection import BODY_EXTENSION, BodyStream
from sseqbridge._http.content_encoding import BodyDecoder, body_decoder
from sseqbridge._http.media_types import is_event_stream_type, is_line_type, media_type
from sseqbridge._sse.header_dates import http_date, retry_after
from sseqbridge._sse.provider_errors import message_of, quoted

if TYPE_CHECKING:
    from sseqbridge._http.connection import Sink
    from sseqbridge._http.h1_heads import ResponseHead
    from sseqbridge._http.media_types import Format

__all__ = [
    "Body",
    "Head",
    "PulledBody",
    "content_type_error",
    "is_event_stream",
    "made_head",
    "open_body",
    "plain_head",
    "read_other_type",
    "read_within_bounds",
    "response_headers",
    "retry_after_of",
    "status_error",
]

# How long a body that may have no end is read for the text of an error: head and body usually come together, and an
# error page in several packets comes without long pauses. A pause ends it sooner.
_PROMPT_SECONDS = 0.5
_PAUSE_SECONDS = 0.1

# A larger body is not searched for the provider's message: decoding it would block the event loop.
_MAX_ERROR_OBJECT = 64 * 1024


class Head(NamedTuple):
    """Status and headers of a response."""

    status: int
    headers: httpx.Headers
    http_version: str
    format: Format = "sse"

    @property
    def is_stream(self) -> bool:
        """Whether the body is read as a stream.

        A 200 is one, since another type has been refused or accepted before. So is every other 2xx with a body of
        the format's own type: frameworks answer 201 to a POST.
        """
        if self.status == 200:
            return True
        if not 200 <= self.status < 300 or self.status == 204:
            return False
        content_type = self.headers.get("content-type", "")
        return is_event_stream_type(content_type) if self.format == "sse" else is_line_type(content_type)

    @property
    def is_accepted_type(self) -> bool:
        """Whether the Content-Type is one of the format. application/json may be that of lines, as of Kubernetes."""
        content_type = self.headers.get("content-type", "")
        if self.format == "sse":
            return is_event_stream_type(content_type)
        return is_line_type(content_type) or media_type(content_type) == "application/json"


def made_head(status: int, headers: Mapping[str, str]) -> Head:
    """Return a head that does not come from a connection."""
    return Head(status, httpx.Headers(headers), "HTTP/1.1")


def plain_head(response: ResponseHead, *, check_content_type: bool) -> Head | None:
    """Return the head of a 200 whose body is an event stream as it is; None for any other response."""
    if response.status != 200:
        return None
    types: list[bytes] = []
    for name, value in response.headers:
        key = name.lower()
        if key == b"content-type":
            types.append(value)
        elif key == b"content-encoding" and value.lower() != b"identity":
            return None
    # A list of types takes a closer look.
    if check_content_type and (
        len(types) != 1 or b"," in types[0] or types[0].partition(b";")[0].strip().lower() != b"text/event-stream"
    ):
        return None
    return Head(200, httpx.Headers(response.headers), f"HTTP/{response.http_version.decode('ascii')}")


class Body(NamedTuple):
    """The body of a response that is no event stream. `error` is the reason if the body is incomplete."""

    content: bytes
    error: BaseException | None = None


def retry_after_of(headers: httpx.Headers) -> float | None:
    """Return the delay that a Retry-After or Retry-After-Ms header asks for, in seconds; None if there is none."""
    # Relative to the server's own clock, if it sends the time.
    now = http_date(headers.get("date")) or datetime.now(timezone.utc)
    return retry_after(headers.get("retry-after"), now, headers.get("retry-after-ms"))


def status_error(target: str, head: Head, body: Body, lost: SSEError | None = None) -> StatusError:
    """Return the error for a response whose status is not 200. It quotes the provider's message if the body has one.

    Its cause is the error that cut the body off, if there is one, else `lost`: the error of the connection after which
    the request was sent.
    """
    try:
        phrase = f" {HTTPStatus(head.status).phrase}"
    except ValueError:
        phrase = ""
    message = _message_in(body.content)
    detail = "; its body is in .body" if body.content else ""
    if message is not None:
        detail = f": {quoted(message.strip())}"
    error = StatusError(f"{target} answered {head.status}{phrase}{detail}", head.status, head.headers, body.content)
    error.__cause__ = body.error or lost
    return error


def _message_in(content: bytes) -> str | None:
    """Return the message in a JSON body, None if there is none, or the body is too large for an error object."""
    if len(content) > _MAX_ERROR_OBJECT:
        return None
    try:
        return message_of(json.loads(content))
    except (ValueError, RecursionError):
        return None


def response_headers(response: Any) -> httpx.Headers:
    """Return a response's headers as httpx's class, also for a response of httpx2."""
    headers = response.headers
    # From the raw headers, which need not be ASCII.
    return headers if isinstance(headers, httpx.Headers) else httpx.Headers(headers.raw)


def is_event_stream(headers: httpx.Headers) -> bool:
    """Whether the Content-Type is text/event-stream."""
    return is_event_stream_type(headers.get("content-type", ""))


def content_type_error(target: str, head: Head, body: Body) -> ContentTypeError:
    """Return the error for a 200 that is no stream of the format."""
    headers = head.headers
    content_type = headers.get("content-type", "")
    if found := media_type(content_type):
        found = f"as {quoted(found)}"
    else:
        found = "without a valid Content-Type" if "content-type" in headers else "without a Content-Type"
    if head.format == "sse":
        wanted, name, other = "text/event-stream", "an event stream", is_line_type(content_type) and "request_jsonl"
    else:
        wanted, name, other = "JSON Lines", "JSON Lines", is_event_stream_type(content_type) and "request_sse"
    advice = f"Request it with {other}." if other else f"Pass check_content_type=False to read it as {name}."
    message = f"{target} answered 200 {found}, not as {wanted}; its body is in .body. {advice}"
    return ContentTypeError(message, 200, headers, body.content)


class PulledBody:
    """The body of a response that came through another transport than the library's own."""

    def __init__(self, chunks: Any) -> None:
        self._chunks: AsyncIterator[bytes] = chunks.__aiter__()

    async def read(self, sink: Sink | None) -> bytes | None:
        """Return the next bytes, b"" at the end. `sink` is never called: see BodyStream.read."""
        try:
            while not (chunk := await self._chunks.__anext__()):
                pass
        except StopAsyncIteration:
            return b""
        return chunk

    async def aclose(self) -> None:
        """Close the generator of the chunks. Otherwise the loop would, where an exit it raises ends the loop."""
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()


async def _raising(error: Exception) -> AsyncIterator[bytes]:
    raise error
    yield b""


async def _only(content: bytes) -> AsyncIterator[bytes]:
    yield content


def open_body(response: Any, head: Head, slice_bytes: int) -> tuple[BodyStream | PulledBody, BodyDecoder]:
    """Return where a response's bytes are read from, and their decoder.

    Raises ProtocolError for a stream with a Content-Encoding that is not supported. For a refusal, whose status
    matters more, reading the body raises it.
    """
    if response.is_stream_consumed:
        # By an event hook or auth of the client's: httpx has decompressed the body.
        return PulledBody(_only(response.content)), BodyDecoder(slice_bytes)
    try:
        decoder = body_decoder(head.headers.get("content-encoding", ""), slice_bytes)
    except ProtocolError as error:
        if head.is_stream:
            raise
        return PulledBody(_raising(error)), BodyDecoder(slice_bytes)
    return response.extensions.get(BODY_EXTENSION) or PulledBody(unbounded_stream(response)), decoder


async def read_other_type(
    next_chunk: Callable[[], Awaitable[bytes | None]], decoder: BodyDecoder, headers: httpx.Headers
) -> Body:
    """Return the body of a 200 that is no event stream, for the error that it becomes.

    A body of unknown length may be another kind of stream, without an end: its error does not wait for it.
    """
    if "content-length" in headers and "transfer-encoding" not in headers:
        return await read_within_bounds(next_chunk, decoder)
    has_begun = False

    async def next_without_pause() -> bytes | None:
        nonlocal has_begun
        chunk = None
        with anyio.move_on_after(_PAUSE_SECONDS if has_begun else _PROMPT_SECONDS):
            chunk = await next_chunk()
        has_begun = True
        return chunk

    return await read_within_bounds(next_without_pause, decoder, _PROMPT_SECONDS)


async def read_within_bounds(
    next_chunk: Callable[[], Awaitable[bytes | None]], decoder: BodyDecoder, seconds: float = BODY_SECONDS
) -> Body:
    """Return a body of MAX_BODY_BYTES at most, as far as it comes in `seconds`."""
    content, error = bytearray(), None
    with anyio.move_on_after(seconds):
        try:
            while len(content) <= MAX_BODY_BYTES and (chunk := await next_chunk()) is not None:
                for piece in decoder.slices(chunk):
                    content += piece
                    if len(content) > MAX_BODY_BYTES:
                        break
        except SSEError as exc:
            error = exc
    return Body(bytes(content[:MAX_BODY_BYTES]), error)
