"""The command line: `sseqbridge URL`, `sseqbridge record URL FILE`, `sseqbridge serve FILE`.

Rule: what came goes to standard output and nothing else does; all that is said about it goes to
standard error. The exit status is 0, 1 where the stream or its answer was no good, 2 for
arguments that cannot work, 130 after Ctrl-C. Into a pipe that nobody reads any more it ends, quietly, with 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sseqbridge._checks import Timeout
from sseqbridge._exceptions import (
    ContentTypeError,
    DecodeError,
    RequestAbortedError,
    ResponseError,
    SSEError,
    StreamTimeoutError,
    TransportError,
    UsageError,
)
from sseqbridge._runtime import sockets, threads
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge._sse.recording import CUT, EOF, Recorded, line_of
from sseqbridge._streams.api import pending, request_sse
from sseqbridge._streams.sync import EventStream, SSEResponse

from .output import Printer, StatusLine, item_printer, told_stats

if TYPE_CHECKING:
    from sseqbridge.testing import ReceivedRequest, Script, Step

__all__ = ["main"]

_OK, _FAILED, _WRONG, _INTERRUPTED = 0, 1, 2, 130

# How often the status line on a terminal is written anew.
_TICK_SECONDS = 0.2

_LIMITS = ("connect", "read", "idle", "total")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Standard output is flushed once more at exit, and would fail again.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return _OK
    except UsageError as exc:
        _say(str(exc))
        return _WRONG
    except (SSEError, OSError) as exc:
        if isinstance(exc, ResponseError):
            _show_body(exc.body)
        _say(_told(exc))
        return _FAILED


def _run(given: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {"record": _record, "serve": _serve}
    command = commands.get(given[0]) if given else None
    return _print(given) if command is None else command(given[1:])


def _say(text: str) -> None:
    print(f"sseqbridge: {text}", file=sys.stderr, flush=True)


def _told(error: Exception) -> str:
    """Return what an error says, where it names an argument of request_sse's with the option for that."""
    what = str(error).partition("; ")[0]
    if isinstance(error, ContentTypeError):
        return f"{what}; --any-content-type reads it all the same"
    if isinstance(error, StreamTimeoutError):
        return f"{what}; --timeout sets this limit"
    if isinstance(error, DecodeError):
        return f"{what}; --text prints it as it is"
    return what if isinstance(error, ResponseError) else str(error)


def _show_body(body: bytes) -> None:
    text = body.decode("utf-8", "replace")
    if text:
        print(text, end="" if text.endswith("\n") else "\n", file=sys.stderr, flush=True)


# Arguments.


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"sseqbridge {command}".strip(),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_request(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the request")
    group.add_argument("url", metavar="URL", help="where the stream is")
    group.add_argument("-X", "--request", metavar="METHOD", help="POST where there is a body, else GET")
    group.add_argument("-H", "--header", metavar="'NAME: VALUE'", type=_header, action="append", default=[])
    group.add_argument("-d", "--data", metavar="JSON|@FILE|-", help="the body: JSON, a file of it, standard input")
    group.add_argument("--reconnect", action="store_true", help="outlive the connection, as an EventSource does")
    group.add_argument(
        "--timeout",
        metavar="SECONDS|LIMIT=SECONDS,...",
        type=_timeout,
        help="a number is connect and read; limits are connect, read, idle, total",
    )
    group.add_argument("--max-events", metavar="N", type=_count, help="end after so many events")
    group.add_argument("--any-content-type", action="store_true", help="read what says that it is something else")


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        # Without it: it may be a key.
        raise argparse.ArgumentTypeError("a header is 'Name: value'")
    return name.strip(), value.strip()


def _timeout(text: str) -> float | dict[str, float]:
    try:
        if "=" not in text:
            return float(text)
        limits = dict(limit.split("=", 1) for limit in text.split(","))
        return {name.strip(): float(seconds) for name, seconds in limits.items()}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of seconds nor {','.join(f'{name}=SECONDS' for name in _LIMITS)}"
        ) from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 1 or more")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port, 0 to 65535")
    return int(text)


def _path(text: str) -> list[str]:
    path = text.split(".")
    if not all(path):
        raise argparse.ArgumentTypeError(f"{text!r} is not keys and indices with dots between them")
    return path


def _body(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        if text == "-":
            body = sys.stdin.buffer.read()
        else:
            body = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode("utf-8", "surrogateescape")
    except OSError as exc:
        raise UsageError(f"--data: {exc}") from exc
    try:
        json.loads(body)
    except ValueError as exc:
        where = f" ({exc.msg} at character {exc.pos})" if isinstance(exc, json.JSONDecodeError) else ""
        raise UsageError(f"--data is not JSON{where}") from None
    return body


# The request.


class _Unread:
    """Set once nobody reads what is written: a request that nobody waits for is aborted, also in silence."""

    def __init__(self, output: TextIO) -> None:
        try:
            self._fd = output.fileno()
        except (OSError, ValueError):
            # Not a file's: a test's, a notebook's.
            self._fd = -1

    def is_set(self) -> bool:
        return self._fd >= 0 and sockets.reader_has_left(self._fd)


def _asked(options: argparse.Namespace, body: bytes | None, status: StatusLine, **how: Any) -> SSEResponse[Any]:
    headers = options.header
    if body is not None and all(name.lower() != "content-type" for name, _ in headers):
        headers = [*headers, ("Content-Type", "application/json")]
    response = pending(
        partial(
            request_sse,
            options.url,
            headers,
            content=body,
            method=options.request,
            timeout=Timeout() if options.timeout is None else options.timeout,
            reconnect=options.reconnect,
            on_reconnect=partial(_told_reconnect, status) if options.reconnect else None,
            check_content_type=not options.any_content_type,
            **how,
        )
    )
    try:
        while True:
            try:
                entry = response.subscription.channel.receive(_TICK_SECONDS if status.is_shown else None)
                head = response.head_of(entry)
            except TimeoutError:
                status.show("waiting for the answer")
                continue
            if head is not None:
                status.clear()
                return response.response(head)
    except BaseException:
        response.subscription.abort()
        raise


def _told_reconnect(status: StatusLine, attempt: int, delay: float, cause: SSEError | None) -> None:
    status.clear()
    why = "the stream ended" if cause is None else str(cause)
    _say(f"{why}; connecting again in {delay:.1f} s (attempt {attempt})")


def _batches(events: EventStream[Any], status: StatusLine, most: int | None) -> Iterator[list[Any]]:
    """Yield what comes, `most` events at most, in as few lists as the reading goes."""
    while most is None or status.events < most:
        try:
            items = events.poll() or [events.next(_TICK_SECONDS if status.is_shown else None)]
        except TimeoutError:
            status.show("waiting for the first event" if not status.events else "waiting")
            continue
        except StopIteration:
            return
        if most is not None:
            items = _first_of(items, most - status.events)
        status.add(_events_in(items))
        yield items


def _first_of(items: list[Any], most: int) -> list[Any]:
    """Return the items up to so many events, the comments between them included."""
    places = [place for place, item in enumerate(items, 1) if not isinstance(item, Comment)]
    return items if len(places) <= most else items[: places[most - 1]]


def _events_in(items: list[Any]) -> int:
    return sum(not isinstance(item, Comment) for item in items)


# sseqbridge URL


_PRINT = """\
Print an event stream as it arrives.

  sseqbridge https://example.com/events
  sseqbridge https://api.openai.com/v1/chat/completions -H "Authorization: Bearer $KEY" \\
      -d '{"model": "gpt-4o-mini", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}' \\
      --path choices.0.delta.content
  sseqbridge record URL FILE      keep a stream, with its timing
  sseqbridge serve FILE           play it, as a server
"""


def _print(given: list[str]) -> int:
    parser = _parser("", _PRINT)
    _add_request(parser)
    shown = parser.add_argument_group("what is printed").add_mutually_exclusive_group()
    shown.add_argument("--text", action="store_true", help="each event's data (the default)")
    shown.add_argument("--json", action="store_true", help="each event's data as JSON, written anew, in one line")
    shown.add_argument("--events", action="store_true", help="whole events and comments, as they stand in a stream")
    parser.add_argument(
        "--path", metavar="KEY.INDEX...", type=_path, help="of each JSON that alone, without line breaks"
    )
    parser.add_argument("--stats", action="store_true", help="say at the end how many came, and how fast")
    parser.add_argument("--version", action="version", version=_version())
    options = parser.parse_args(given)
    if options.path and (options.text or options.events):
        parser.error("--path looks into JSON: it goes with --json")
    decode = "event" if options.events else "json" if options.json or options.path else "text"
    if sys.stdout is None:
        raise UsageError("standard output is closed: there is nothing to print to")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    body = _body(options.data)
    printer = item_printer(sys.stdout, decode, options.path)
    unread = _Unread(sys.stdout)
    status = StatusLine(sys.stderr, until_first=bool(options.path) and sys.stdout.isatty())
    events: EventStream[Any] | None = None
    try:
        with _asked(options, body, status, decode=decode, comments=options.events, cancel=unread) as response:
            events = response.raise_for_status().events
            _print_all(events, printer, status, options.max_events)
    except RequestAbortedError:
        # Nobody reads what would be printed.
        return _OK
    finally:
        status.clear()
        printer.end()
        if options.stats and events is not None:
            _say(told_stats(events.stats, status.events, status.seconds))
    return _OK


def _print_all(events: EventStream[Any], printer: Printer, status: StatusLine, most: int | None) -> None:
    for items in _batches(events, status, most):
        for item in items:
            printer.add(item)
        printer.flush()


def _version() -> str:
    from importlib.metadata import version

    return f"sseqbridge {version('sseqbridge')}"


# sseqbridge record URL FILE


_RECORD = """\
Write an event stream to FILE, with its timing, for `sseqbridge serve` and sseqbridge.testing.recording:
JSON lines, one event a line. Nothing of the request, or of the answer's headers, is in it.
"""


def _record(given: list[str]) -> int:
    parser = _parser("record", _RECORD)
    _add_request(parser)
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="where FILE exists")
    options = parser.parse_args(given)
    body = _body(options.data)
    file: Path = options.file
    if file.exists() and not options.overwrite:
        raise UsageError(f"{file} exists; --overwrite writes over it")
    # Beside it, so that what is there stays until there is something to put in its place.
    part = file.with_name(f".{file.name}.part") if file.is_file() or not file.exists() else file
    status = StatusLine(sys.stderr)
    how = {"decode": "event", "comments": True, "done": _is_done}
    with _written(part, file) as output, _asked(options, body, status, **how) as response:
        _write_all(response.raise_for_status().events, output, status, options.max_events)
    _say(f"{status.events} events in {file}")
    return _OK


@contextlib.contextmanager
def _written(part: Path, file: Path) -> Iterator[TextIO]:
    """Open a file that takes the place of another one in the end, where anything was written to it."""
    try:
        output = part.open("w", encoding="utf-8")
    except OSError as exc:
        raise UsageError(str(exc)) from exc
    try:
        with output:
            yield output
    finally:
        if part != file and part.stat().st_size:
            part.replace(file)
        elif part != file:
            part.unlink()


def _is_done(event: ServerSentEvent) -> bool:
    return event.data == "[DONE]"


def _write_all(events: EventStream[Any], file: TextIO, status: StatusLine, most: int | None) -> None:
    last_id = ""
    try:
        for items in _batches(events, status, most):
            for item in items:
                file.write(line_of(Recorded(status.seconds, item), last_id))
                last_id = last_id if isinstance(item, Comment) else item.id
            file.flush()
    except TransportError:
        file.write(line_of(Recorded(status.seconds, CUT)))
        raise
    finally:
        status.clear()
    if events.outcome in ("done", "eof"):
        file.write(line_of(Recorded(status.seconds, EOF)))


# sseqbridge serve FILE


_SERVE = """\
Play a recorded stream to whoever asks, whatever for, with its timing: for a user interface to be built and
tested without the upstream. A request with a Last-Event-ID gets what came after it.
"""


def _serve(given: list[str]) -> int:
    parser = _parser("serve", _SERVE)
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--speed", type=float, default=1.0, help="2 is twice as fast, inf without waits")
    parser.add_argument("--cors", action="store_true", help="let pages of other origins read it")
    options = parser.parse_args(given)
    # An HTTP server, which nothing else here needs.
    from sseqbridge.testing import SSEServer, recording

    try:
        played = recording(options.file, speed=options.speed)
    except OSError as exc:
        raise UsageError(str(exc)) from exc
    script = _told_to_all_origins(played) if options.cors else played
    with SSEServer(_logged(script), host=options.host, port=options.port) as server:
        _say(f"{server.url} plays {options.file}; Ctrl-C ends it")
        _wait_for_interrupt()
    return _OK


def _wait_for_interrupt() -> None:
    # Not an Event's wait(), which an interrupt at its beginning leaves with another error.
    threads.ThreadWaiter().wait(None)


def _logged(script: Script) -> Script:
    def logged(request: ReceivedRequest) -> Iterator[Step]:
        # Whether or not anybody reads it.
        with contextlib.suppress(OSError):
            _say(f"{request.method} {request.path.partition('?')[0]}")
        yield from script(request)

    return logged


_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "*",
    "Access-Control-Allow-Headers": "*, Authorization",
}


def _told_to_all_origins(script: Script) -> Script:
    from sseqbridge.testing import respond

    def shared(request: ReceivedRequest) -> Iterator[Step]:
        if request.method == "OPTIONS":
            yield respond(204, _CORS, content_type=None)
            return
        steps = iter(script(request))
        # In the place of the recording's own.
        next(steps)
        yield respond(headers=_CORS)
        yield from steps

    return shared
