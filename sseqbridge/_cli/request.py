"""The request of a command: its arguments, sending it, and reading the stream in batches.

Runs on the main thread, which waits in short steps if there is a status line to update.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sseqbridge._checks import Timeout
from sseqbridge._exceptions import SSEError, UsageError
from sseqbridge._sse.events import Comment
from sseqbridge._streams.api import pending, request_sse
from sseqbridge._streams.sync import EventStream, SSEResponse

from .output import StatusLine, print_message

__all__ = ["add_request_arguments", "batches", "new_parser", "read_body", "send_request"]

# How often the status line on a terminal is updated.
_TICK_SECONDS = 0.2

_LIMITS = ("connect", "read", "idle", "total")


def new_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return the argument parser of a command."""
    return argparse.ArgumentParser(
        prog=f"sseqbridge {command}".strip(),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command that sends a request."""
    group = parser.add_argument_group("the request")
    group.add_argument("url", metavar="URL", help="the address of the stream")
    group.add_argument("-X", "--request", metavar="METHOD", help="default: POST with a body, else GET")
    group.add_argument("-H", "--header", metavar="'NAME: VALUE'", type=_header, action="append", default=[])
    group.add_argument("-d", "--data", metavar="JSON|@FILE|-", help="the body: JSON, a file, or standard input")
    group.add_argument("--reconnect", action="store_true", help="reconnect as an EventSource does")
    group.add_argument(
        "--timeout",
        metavar="SECONDS|LIMIT=SECONDS,...",
        type=_timeout,
        help="a number sets connect and read; limits are connect, read, idle, total",
    )
    group.add_argument("--max-events", metavar="N", type=_count, help="end after N events")
    group.add_argument("--any-content-type", action="store_true", help="accept types other than text/event-stream")


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
            body = sys.stdin.buffer.read()
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


def send_request(
    arguments: argparse.Namespace, body: bytes | None, status: StatusLine, **options: Any
) -> SSEResponse[Any]:
    """Send the request and return its response. Aborts the request if an error or interrupt ends the wait."""
    headers = arguments.header
    if body is not None and all(name.lower() != "content-type" for name, _ in headers):
        headers = [*headers, ("Content-Type", "application/json")]
    call = partial(
        request_sse,
        arguments.url,
        headers,
        content=body,
        method=arguments.request,
        timeout=Timeout() if arguments.timeout is None else arguments.timeout,
        reconnect=arguments.reconnect,
        on_reconnect=partial(_report_reconnect, status) if arguments.reconnect else None,
        check_content_type=not arguments.any_content_type,
        **options,
    )
    response = pending(call)
    try:
        response.send()
        while True:
            try:
                entry = response.subscription.channel.receive(_TICK_SECONDS if status.is_shown else None)
            except TimeoutError:
                status.show("waiting for the response")
                continue
            head = response.head_of(entry)
            if head is not None:
                status.clear()
                return response.response(head)
    except BaseException:
        response.subscription.abort()
        raise


def _report_reconnect(status: StatusLine, attempt: int, delay: float, cause: SSEError | None) -> None:
    status.clear()
    reason = "the stream ended" if cause is None else str(cause)
    print_message(f"{reason}; reconnecting in {delay:.1f} s (attempt {attempt})")


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
