"""The delivery side of a log's reader: when it wakes the consumer."""

from __future__ import annotations

import asyncio
from typing import Any

from sseqbridge._engine.channel import Channel
from sseqbridge._engine.memory import DEFAULT_MAX_BUFFERED_BYTES
from sseqbridge._sse.dialects import DEFAULT_DONE, event_rules
from sseqbridge.resume._delivery import Delivery
from sseqbridge.resume._entries import START, Entry, Position
from sseqbridge.resume._segments import segments_of


async def woken_at_once(*, wakes_later: bool) -> bool:
    """Deliver an event to a waiting consumer, wait until it is woken, and return whether it was woken in the call."""
    channel: Channel[Any] = Channel(asyncio.get_running_loop(), DEFAULT_MAX_BUFFERED_BYTES)
    rules = event_rules("openai", DEFAULT_DONE, is_json=True)
    delivery = Delivery(channel, "the stream", DEFAULT_MAX_BUFFERED_BYTES, rules)
    delivery.send_head()
    channel.poll()
    woken = asyncio.Event()
    channel.notify(woken.set)
    (segment,) = segments_of([Entry(Position(0, 1), {"data": "1"})], START, from_any=True)
    assert delivery.try_put(segment, wakes_later=wakes_later)
    is_woken = woken.is_set()
    await woken.wait()
    return is_woken


def test_event_wakes_the_consumer() -> None:
    assert asyncio.run(woken_at_once(wakes_later=False))


def test_broadcast_event_wakes_the_consumer_later() -> None:
    """First the hub sends the next read of the store."""
    assert not asyncio.run(woken_at_once(wakes_later=True))
