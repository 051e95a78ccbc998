"""Counters of streams and bridges, as immutable snapshots that any thread may take."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BridgeStats", "StreamStats"]


@dataclass(frozen=True)
class StreamStats:
    """Counters of one stream.

    The attribute `stats` of a stream is one.

        print(it.stats.events, it.stats.time_to_first_event)

    `bytes` of body and `events`, without heartbeats, were received; `buffered` bytes were received and are not
    consumed yet (each event is charged 256 bytes besides). For a stream of iterate(), `events` and `buffered` count
    items, and `bytes` is 0. `reconnections` counts connections after the first, and
    `time_to_first_event` is in seconds from the call, None before the first event.
    """

    bytes: int
    events: int
    buffered: int
    reconnections: int
    time_to_first_event: float | None


@dataclass(frozen=True)
class BridgeStats:
    """Counters of a bridge, summed over its streams.

    `Bridge.stats` returns it.

        stats = Bridge.default().stats()
        print(stats.open_streams, stats.longest_wait)

    `open_streams` are running, calls of run and enter included, on `connections` (open ones, idle ones included, as
    far as the HTTP client reports them). `events` and `bytes` of body were received since the bridge was made;
    `buffered` bytes wait for consumers: those of requests, and readers of tees and logs (each event is charged 256
    bytes besides). `longest_wait` is the longest delay of the event loop, in seconds, while streams were open:
    blocking code on the loop delays every stream.
    """

    open_streams: int
    connections: int
    events: int
    bytes: int
    buffered: int
    longest_wait: float
