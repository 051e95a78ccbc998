"""The request of a command: its arguments, sending it, and reading the stream in batches.

Runs on the main thread, which waits in short steps if there is a status line to update.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from sseqbridge._checks import Timeout
from sseqbridge._engine.responses import Head, made_head
from sseqbridge._exceptions import ResponseError, SSEError, UsageError
from sseqbridge._sse.events import Comment
from sseqbridge._streams.arguments import check_line_options, prepare
from sseqbridge._streams.bridge import Bridge
from sseqbridge._streams.pending import PendingResponse, pending
from sseqbridge._streams.sync import EventStream, SSEResponse

from .output import StatusLine, print_error

if TYPE_CHECKING:
    import httpx

    from sseqbridge._http.media_types import Format

__all__ = ["add_request_arguments", "batches", "new_parser", "read_body", "send_request"]

# How often the status line on a terminal is updated.
_TICK_SECONDS = 0.2

_LIMITS = ("connect", "read", "idle", "total")

# Also "https:/host", which is a typing error and no host named "https".
_HAS_SCHEME = re.compile("[a-z][a-z0-9+.-]*://|https?:(?![0-9])|$", re.IGNORECASE)

_EPILOG = """\
Exit status: 0; 1 if the stream or the response failed; 2 for wrong arguments; 130, 143 or 129 after Ctrl-C, SIGTERM
or SIGHUP. Errors and messages go to standard error.
"""


class _Parser(argparse.ArgumentParser):
    """Writes its errors where all messages go: argparse would write them to standard output if the other is closed."""

    def error(self, message: str) -> NoReturn:
        print_error(f"{self.format_usage()}{self.prog}: error: {message}\n")
        raise SystemExit(2)


def new_parser(command: str, usage: str, description: str) -> argparse.ArgumentParser:
    """Return the argument parser of a command. `usage` has a line for each form of it."""
    return _Parser(
        prog=f"sseqbridge {command}".strip(),
        usage=usage,
        description=description,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command that sends a request."""
    group = parser.add_argument_group("the request")
    add = group.add_argument
    add("url", metavar="URL", type=_url, help="the address of the stream; without http:// or https://, http is used")
    add("-X", "--request", metavar="METHOD", help="HTTP method (default: POST with --data, else GET)")
    add(
        "-H",
        "--header",
        metavar="'NAME: VALUE'",
        type=_header,
        action="append",
        default=[],
        help="send this header; may be repeated",
    )
    add("-d", "--data", metavar="JSON", help="send this JSON; @FILE reads it from a file, - from standard input")
    add("-k", "--insecure", action="store_true", help="accept any TLS certificate of the server")
    add("--last-event-id", metavar="ID", help="resume after the event with this ID")
    add("--reconnect", action="store_true", help="if the connection is lost, reconnect and resume, as browsers do")
    add(
        "--timeout",
        metavar="SECONDS",
        type=_timeout,
        help="fail if no connection is made, or no byte arrives, for SECONDS; or set single limits, as in "
        "connect=5,read=60,idle=30,total=300 (idle: without an event, total: the whole stream)",
    )
    add("--max-events", metavar="N", type=_count, help="end the request after N events")
    add("--any-content-type", action="store_true", help="read the response even if it has another type")


def _url(text: str) -> str:
    """Return a URL with a scheme: curl and browsers accept addresses without one too."""
    if _HAS_SCHEME.match(text):
        return text
    return f"http:{text}" if text.startswith("//") else f"http://{text}"


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        # The text is not shown, since it may be a key.
        raise argparse.ArgumentTypeError("a header must have the form 'Name: value'")
    return name.strip(), value.strip()


def _timeout(text: str) -> float | dict[str, float]:
    try:
        if "=" not in text:
            return float(text)
        limits = dict(limit.split("=", 1) for limit in text.split(","))
        return {name.strip(): float(seconds) for name, seconds in limits.items()}
    except ValueError:
        forms = ",".join(f"{name}=SECONDS" for name in _LIMITS)
        raise argparse.ArgumentTypeError(f"must be a number of seconds or {forms}, got {text!r}") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def read_body(data: str | None) -> bytes | None:
    """Return the body for the argument of --data. Raises UsageError if it cannot be read or is not JSON."""
    if data is None:
        return None
    try:
        if data == "-":
            body = _standard_input()
        else:
            body = Path(data[1:]).read_bytes() if data.startswith("@") else data.encode("utf-8", "surrogateescape")
    except OSError as exc:
        raise UsageError(f"--data: {exc}") from exc
    try:
        json.loads(body)
    except ValueError as exc:
        where = f" ({exc.msg} at character {exc.pos})" if isinstance(exc, json.JSONDecodeError) else ""
        raise UsageError(f"--data must be JSON, got other text{where}") from None
    return body


def _standard_input() -> bytes:
    # None if it was closed, which the type stubs leave out.
    stream: TextIO | None = sys.stdin
    if stream is None:
        raise UsageError("standard input must be open for --data -, got a closed one. Pass --data @FILE.")
    return stream.buffer.read()


@contextlib.contextmanager
def send_request(
    arguments: argparse.Namespace,
    body: bytes | None,
    status: StatusLine,
    *,
    on_head: Callable[[Head], None] | None = None,
    format: Format = "sse",
    **options: Any,
) -> Iterator[SSEResponse[Any]]:
    """Send the request and yield its response; abort it at the end of the block.

    `on_head` is called with the head of the response, also if the response is refused. `options` are of request_sse.
    """
    headers = arguments.header
    if body is not None and all(name.lower() != "content-type" for name, _ in headers):
        headers = [*headers, ("Content-Type", "application/json")]
    if format == "jsonl":
        check_line_options(options)
    with contextlib.ExitStack() as stack:
        # Without a certificate check the client is httpx's own.
        insecure = stack.enter_context(Bridge(client=_insecure_client)) if arguments.insecure else None
        own: dict[str, Any] = {
            "content": body,
            "method": arguments.request,
            "timeout": Timeout() if arguments.timeout is None else arguments.timeout,
            "reconnect": arguments.reconnect,
            "on_reconnect": partial(_report_reconnect, status) if arguments.reconnect else None,
            "last_event_id": arguments.last_event_id,
            "check_content_type": not arguments.any_content_type,
        }
        prepared = prepare(arguments.url, headers, options={**own, **options}, format=format)
        request = pending(prepared, insecure)
        try:
            request.send()
            head = _wait_for_head(request, status)
        except BaseException as exc:
            request.subscription.abort()
            if on_head is not None and isinstance(exc, ResponseError):
                on_head(made_head(exc.status, exc.headers))
            raise
        with request.response(head) as response:
            status.clear()
            if on_head is not None:
                on_head(head)
            yield response


def _wait_for_head(request: PendingResponse, status: StatusLine) -> Head:
    while True:
        try:
            entry = request.subscription.channel.receive(_TICK_SECONDS if status.is_shown else None)
        except TimeoutError:
            status.show("waiting for the response")
            continue
        head = request.head_of(entry)
        if head is not None:
            return head


def _insecure_client() -> httpx.AsyncClient:
    import httpx

    return httpx.AsyncClient(verify=False)


def _report_reconnect(status: StatusLine, attempt: int, delay: float, cause: SSEError | None) -> None:
    reason = "the stream ended" if cause is None else str(cause)
    status.print_message(f"{reason}; reconnecting in {delay:.1f} s (attempt {attempt})")


def batches(events: EventStream[Any], status: StatusLine, limit: int | None) -> Iterator[list[Any]]:
    """Yield the items of a stream up to event number `limit`, each time all that have arrived."""
    while limit is None or status.events < limit:
        try:
            items = events.poll() or [events.next(_TICK_SECONDS if status.is_shown else None)]
        except TimeoutError:
            status.show("waiting for the first event" if not status.events else "waiting")
            continue
        except StopIteration:
            return
        if limit is not None:
            items = _up_to(items, limit - status.events)
        status.add(_event_count(items))
        yield items


def _up_to(items: list[Any], limit: int) -> list[Any]:
    """Return the items up to event number `limit`, with the comments between them."""
    ends = [end for end, item in enumerate(items, 1) if not isinstance(item, Comment)]
    return items if len(ends) <= limit else items[: ends[limit - 1]]


def _event_count(items: list[Any]) -> int:
    return sum(not isinstance(item, Comment) for item in items)
