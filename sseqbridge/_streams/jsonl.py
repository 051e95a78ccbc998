"""request_jsonl: request_sse for responses of JSON Lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from sseqbridge._signatures import signature_with

from .arguments import NOT_OF_LINES
from .client import lines_client, pending_of_client
from .hints import check_names
from .keywords import DecodeKeywords, LineKeywords
from .sync import SSEResponse

if TYPE_CHECKING:
    import httpx
    from typing_extensions import Unpack

    from sseqbridge._sse.events import ServerSentEvent

    from .arguments import Headers

__all__ = ["request_jsonl"]

T = TypeVar("T")

_KNOWN = LineKeywords.__optional_keys__ | {"decode"} | NOT_OF_LINES


@overload
def request_jsonl(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["json"] = "json",
    **options: Unpack[LineKeywords],
) -> SSEResponse[Any]: ...
@overload
def request_jsonl(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["text"],
    **options: Unpack[LineKeywords],
) -> SSEResponse[str]: ...
@overload
def request_jsonl(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Literal["event"],
    **options: Unpack[LineKeywords],
) -> SSEResponse[ServerSentEvent]: ...
@overload
def request_jsonl(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: Callable[[ServerSentEvent], T],
    **options: Unpack[LineKeywords],
) -> SSEResponse[T]: ...
@overload
def request_jsonl(
    url: str | httpx.URL,
    headers: Headers = None,
    data: Any = None,
    *,
    decode: str,
    **options: Unpack[LineKeywords],
) -> SSEResponse[Any]: ...
def request_jsonl(url: str | httpx.URL, headers: Headers = None, data: Any = None, **options: Any) -> SSEResponse[Any]:
    """Send a request as request_sse does, and return `status, headers, events` once the response's headers are in.

        for chunk in request_jsonl("http://localhost:11434/api/chat", None, body).events:  # Ollama
            print(chunk["message"]["content"])

    The response is JSON Lines: one JSON document a line (LF or CRLF; blank lines are skipped), as
    application/jsonl, application/x-ndjson and their variants, application/json (Kubernetes), or a JSON text
    sequence, application/json-seq (RFC 7464). `events` yields the documents. `decode` is "json" (decoded),
    "text" (the line), "event" (a ServerSentEvent of type "message" whose `data` is the line), or a function of
    that event.

    `done` marks the last line: its text, which is no item, or a function of the event that returns True for the
    last item, such as {"done": true} of Ollama. With `require_done` an end without it raises
    TruncatedStreamError. In JSON mode an object with a member "error" raises UpstreamError, unless
    `error_events="yield"`. A line has at most `max_event_bytes` bytes. The stream, its limits and the other
    options are those of request_sse; use SSEClient(format="jsonl") in a coroutine.

    `url`, `headers`, `data`, `json`, `method`, `params`, `content`, `auth`, `cookies`, `files`, `extensions`, `timeout`
    (in seconds), `cancel`, `follow_redirects`, `check_content_type`, `max_buffered_bytes` and `bridge` are those of
    request_sse.

    Raises what request_sse raises, and UsageError for `comments`, `dialect`, `last_event_id`, `reconnect` and
    `on_reconnect`, which have no meaning here.

    An incomplete last line raises TruncatedStreamError, or the ReadError of a lost connection, with the text of the
    line as `torn_line`. A whole document without its line end is an item. If the connection was lost there, a number,
    true, false or null is no item but a `torn_line`, since it may be incomplete.
    """
    check_names(options, _KNOWN, "request_jsonl")
    bridge = options.pop("bridge", None)
    response = pending_of_client(lines_client(), url, headers, data, options, bridge)
    return response.open()


def _describe() -> None:
    signature = signature_with(request_jsonl, DecodeKeywords, LineKeywords)
    # JSON Lines have no end of their own, so that the default of `done` stands for none.
    parameters = [each.replace(default=None) if each.name == "done" else each for each in signature.parameters.values()]
    request_jsonl.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]


_describe()
