"""Follow a feed that never ends, through lost connections and restarts of this program.

    python -m examples.feed [URL]

The ID of the last handled event is kept in feed.position, so a restarted program continues after it. Without a URL it
follows a local feed, which ends after ten prices.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from sseqbridge import EventStream, RequestAbortedError, ServerSentEvent, Timeout, request_sse
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, cut, respond, send, wait


def on_message(event: ServerSentEvent) -> None:
    print("message:", event.data, flush=True)


def on_price(event: ServerSentEvent) -> None:
    price = event.json()
    print("price:", price["symbol"], price["value"], flush=True)


# An event without a name has the type "message". Events of other types are skipped.
HANDLERS: dict[str, Callable[[ServerSentEvent], None]] = {"message": on_message, "price": on_price}


def follow(url: str, position: Path, stop: threading.Event | None = None) -> None:
    """Handle each event of the feed. Returns when the server ends it (status 204), or once `stop` is set."""
    last_event_id = position.read_text("utf-8") if position.exists() else None
    try:
        events: EventStream[ServerSentEvent] = request_sse(
            url,
            decode="event",
            dialect="events",  # no event ends the feed
            reconnect=True,
            last_event_id=last_event_id,
            timeout=Timeout(read=60),  # a feed without events and heartbeats for a minute is reconnected
            cancel=stop,
        ).events
    except RequestAbortedError:
        return  # `stop` was set before the first response
    events.raise_for_status()
    for event in events:
        if handle := HANDLERS.get(event.event):
            handle(event)
        if event.id:
            save(event.id, position)


def save(event_id: str, position: Path) -> None:
    """Write the file as a whole: a crash leaves the old ID or the new one."""
    temporary = position.with_suffix(".new")
    temporary.write_text(event_id, "utf-8")
    os.replace(temporary, position)


def prices(request: ReceivedRequest) -> Iterator[Step]:
    """A local feed: ten prices, with a lost connection after the fifth."""
    last = int(request.last_event_id or 0)
    if last >= 10:
        yield respond(204)
    for number in range(last + 1, 11):
        yield send({"symbol": "X", "value": number}, event="price", id=str(number), retry=0.5)
        yield wait(0.1)
        if number == 5:
            yield cut()


def main(arguments: list[str]) -> None:
    """Follow the feed at a URL, or the local one, until a signal."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if arguments:
        follow(arguments[0], Path("feed.position"), stop)
        return
    with TemporaryDirectory() as directory, SSEServer(prices) as server:
        follow(server.url, Path(directory) / "feed.position", stop)


if __name__ == "__main__":
    main(sys.argv[1:])
