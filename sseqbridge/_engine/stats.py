"""Counters of streams and bridges, as immutable snapshots that any thread may take."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BridgeStats", "StreamStats"]


@dataclass(frozen=True)
class StreamStats:
    """Counters of one stream.

    The attribute `stats` of a stream returns them.

        print(it.stats.events, it.stats.time_to_first_event)

    `bytes`: bytes of the body that were received.
    `events`: events that were received, without heartbeats.
    `buffered`: bytes that were received and wait for the consumer, with 256 bytes more for each event.
    `reconnections`: connections after the first.
    `time_to_first_event`: seconds from the call to the first event, None before it.

    For a stream of iterate(), `events` and `buffered` count items, and `bytes` is 0.
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

    `open_streams`: streams, and calls of run and enter, that are running.
    `connections`: open connections, idle ones included, as far as the HTTP client reports them.
    `events`, `bytes`: events, and bytes of bodies, that were received since the bridge was made.
    `buffered`: bytes that wait for consumers, readers of tees and logs included, with 256 bytes more for each event.
    `longest_wait`: the longest delay of the event loop, in seconds, while streams were open. Code that blocks the loop
    delays every stream.
    """

    open_streams: int
    connections: int
    events: int
    bytes: int
    buffered: int
    longest_wait: float
