"""BatchReader without I/O: bytes go in, batches come out."""

from __future__ import annotations

import gzip
from contextlib import nullcontext
from typing import Any

import pytest

from sseqbridge import (
    BufferLimitError,
    Comment,
    ProtocolError,
    ServerSentEvent,
    Timeout,
    TruncatedStreamError,
    UpstreamError,
)
from sseqbridge._engine.batches import EVENT_OVERHEAD, Batch, BatchReader
from sseqbridge._http.content_encoding import body_decoder
from sseqbridge._http.request import RequestOptions
from sseqbridge._sse.dialects import DEFAULT_DONE, event_rules

pytestmark = pytest.mark.configurations("default")

RULES = event_rules("openai", DEFAULT_DONE, is_json=True)


def options(**changes: Any) -> RequestOptions:
    values: dict[str, Any] = {
        "method": "GET",
        "url": "http://upstream/",
        "headers": [],
        "build": {},
        "send": {},
        "has_body": False,
        "last_event_id": "",
        "reconnect": None,
        "replayable": True,
        "timeout": Timeout(),
        "follow_redirects": None,
        "check_content_type": True,
        "rules": event_rules("openai", changes.pop("done", DEFAULT_DONE), is_json=changes.pop("is_json", False)),
        "require_done": False,
        "comments": False,
        "max_event_bytes": 1 << 20,
        "max_buffered_bytes": 1 << 20,
        "cancel": None,
    }
    return RequestOptions(**values | changes)


def reader(encoding: str = "", *, last_event_id: str = "", retry: float | None = None, **changes: Any) -> BatchReader:
    made = BatchReader(options(**changes), last_event_id, retry)
    made.decoder = body_decoder(encoding, made.slice_bytes)
    return made


def event(number: int) -> bytes:
    return b"data: %d\n\n" % number


def data_of(batches: list[Batch]) -> list[list[str]]:
    return [[item.data for item in batch.items if isinstance(item, ServerSentEvent)] for batch in batches]


def rest_of(source: BatchReader) -> list[Batch]:
    batches = []
    while (batch := source.rest()) is not None:
        batches.append(batch)
    return batches


def fed(source: BatchReader, chunk: bytes) -> list[Batch]:
    source.feed(chunk)
    return rest_of(source)


class Sink:
    """Collects batches; refuses them once `room` are in."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.batches: list[Batch] = []
        self._room = room

    def put(self, batch: Batch) -> bool:
        if len(self.batches) >= self._room:
            return False
        self.batches.append(batch)
        return True


def test_events_of_one_chunk_are_one_batch() -> None:
    source = reader()
    (batch,) = fed(source, event(1) + event(2))
    assert data_of([batch]) == [["1", "2"]]
    assert batch.events == source.events == 2
    assert not source.is_parsing


def test_an_event_may_span_chunks() -> None:
    source = reader()
    assert fed(source, b"data: ") == []
    assert data_of(fed(source, b"1\n\ndata")) == [["1"]]


def test_a_batch_is_charged_for_bytes_and_events() -> None:
    source = reader()
    chunk = event(1) + event(2)
    assert fed(source, b": ping\n\n") == []
    (batch,) = fed(source, chunk)
    # The bytes that no batch was charged for count for this one.
    assert batch.charge == len(b": ping\n\n") + len(chunk) + 2 * EVENT_OVERHEAD


def test_comments_are_items_but_no_events() -> None:
    source = reader(comments=True)
    (batch,) = fed(source, b": ping\n" + event(1))
    assert [type(item) for item in batch.items] == [Comment, ServerSentEvent]
    assert batch.events == 1


def test_an_id_without_data_makes_an_empty_batch() -> None:
    (batch,) = fed(reader(), b"id: a\n\n")
    assert (batch.items, batch.last_event_id, batch.charge) == ([], "a", len(b"id: a\n\n") + EVENT_OVERHEAD)


def test_a_retry_makes_an_empty_batch() -> None:
    source = reader()
    (batch,) = fed(source, b"retry: 1500\n\n")
    assert batch.items == []
    assert batch.retry == source.retry == 1.5


def test_a_reader_continues_at_a_position() -> None:
    source = reader(last_event_id="a", retry=2.0)
    assert (source.last_event_id, source.retry) == ("a", 2.0)
    (batch,) = fed(source, event(1))
    assert (batch.last_event_id, batch.retry) == ("a", 2.0)


def test_the_end_marker_ends_the_stream() -> None:
    source = reader()
    (batch,) = fed(source, b"id: a\n" + event(1) + b"id: b\ndata: [DONE]\n\nid: c\n" + event(2))
    assert data_of([batch]) == [["1"]]
    assert source.done_event is not None
    assert (source.done_event.data, batch.last_event_id) == ("[DONE]", "b")


def test_without_an_end_marker_every_event_is_an_item() -> None:
    source = reader(done=None)
    assert data_of(fed(source, b"data: [DONE]\n\n" + event(1))) == [["[DONE]", "1"]]
    assert source.done_event is None


def test_empty_events_are_skipped_but_errors_are_not() -> None:
    source = reader(is_json=True)
    (batch,) = fed(source, b"data:\n\nevent: error\ndata:\n\n" + event(1))
    items = batch.without_heartbeats(RULES).items
    assert [(item.event, item.data) for item in items if isinstance(item, ServerSentEvent)] == [
        ("error", ""),
        ("message", "1"),
    ]


def test_heartbeats_are_not_counted() -> None:
    chunk = b"event: ping\ndata: now\n\n" + event(1) + b"id: a\nevent: ping\ndata:\n\n"
    (batch,) = fed(reader(), chunk)
    assert (len(batch.items), batch.events, batch.last_event_id) == (3, 1, "a")
    (batch,) = fed(reader(comments=True), b": ping\n" + chunk)
    assert (len(batch.items), batch.events) == (4, 1)
    source = reader(is_json=True)
    (batch,) = fed(source, b"retry: 1\n\n" + chunk + b"retry: 2\n\n")
    assert (len(batch.items), batch.events, batch.last_event_id) == (3, 1, "a")
    assert batch.retries == [(0, 0.001), (3, 0.002)]
    kept = batch.without_heartbeats(RULES)
    assert (data_of([kept]), kept.retries, kept.last_event_id) == ([["1"]], [(0, 0.001), (1, 0.002)], "a")
    assert kept.without_heartbeats(RULES) is kept


def test_an_end_event_is_the_last_item() -> None:
    source = reader()
    (batch,) = fed(source, event(1) + b"event: response.completed\ndata: {}\n\n" + event(2))
    assert data_of([batch]) == [["1", "{}"]]
    assert (source.is_done, source.done_event) == (True, None)


def test_a_small_buffer_gets_all_events_before_the_end() -> None:
    """The reader is not done before its last batch."""
    source = reader(max_buffered_bytes=1)
    source.feed(event(1) + event(2) + event(3) + b"data: [DONE]\n\n")
    seen = []
    while not source.is_done and (batch := source.next_batch()) is not None:
        seen.append((data_of([batch])[0], source.is_done))
    assert seen == [(["1"], False), (["2"], False), (["3"], True)]


RETRIES = b"".join(
    [
        b"retry: 1000\n\n" + event(1),
        event(2) + b"event: ping\nretry: 2000\ndata: now\n\n",
        event(3) + b"retry: 3000\n\n",
    ]
)


@pytest.mark.parametrize("is_json", [True, False])
def test_the_reconnection_time_is_known_for_each_item(is_json: bool) -> None:
    expected = [5.0, 1.0, 1.0, 2.0] if is_json else [5.0, 1.0, 1.0, 2.0, 2.0]
    batch, later = (_consumed(fed(reader(retry=5.0, is_json=is_json), RETRIES), is_json) for _ in range(2))
    assert times_in(batch) == expected
    assert batch.retry == 3.0
    assert times_in(batch.rest(batch.items[1:]))[1:] == expected[2:]
    batch.absorb(later)
    assert times_in(batch) == [*expected, *expected[1:]]


def _consumed(batches: list[Batch], is_json: bool) -> Batch:
    """Return the one batch as the consumer reads it."""
    (batch,) = batches
    return batch.without_heartbeats(RULES) if is_json else batch


def times_in(batch: Batch) -> list[float | None]:
    """Return the reconnection time before the batch, and at each of its events."""
    return [batch.retry_at(event, 5.0) for event in (None, *batch.items)]  # type: ignore[arg-type]


def test_the_reconnection_time_is_known_in_bounded_batches() -> None:
    batches = fed(reader(retry=5.0, max_buffered_bytes=1), RETRIES)
    assert [times_in(batch)[-1] for batch in batches] == [1.0, 1.0, 2.0, 5.0]
    assert [batch.retry for batch in batches] == [1.0, 1.0, 2.0, 3.0]


def test_reconnection_time_at_the_end_is_the_last_events() -> None:
    source = reader()
    (batch,) = fed(source, b"retry: 1000\n" + event(1) + b"data: [DONE]\nretry: 2000\n\nretry: 3000\n\n")
    assert batch.retry == 2.0
    assert times_in(batch) == [5.0, 1.0]


def test_a_large_chunk_makes_batches_of_bounded_size() -> None:
    # The smallest buffer: two events a batch, 512 bytes a slice.
    source = reader(max_buffered_bytes=8 * EVENT_OVERHEAD)
    batches = fed(source, b"".join(b"id: %d\n" % number + event(number) for number in range(5)))
    assert data_of(batches) == [["0", "1"], ["2", "3"], ["4"]]
    assert [batch.last_event_id for batch in batches] == ["1", "3", "4"]


def test_bounded_batches_keep_the_id_across_comments() -> None:
    source = reader(max_buffered_bytes=8 * EVENT_OVERHEAD, comments=True)
    batches = fed(source, b"id: a\n" + event(1) + b": x\n: y\n: z\n: q\n")
    assert [batch.last_event_id for batch in batches] == ["a", "a", "a"]


def test_a_compressed_body_is_read_in_slices() -> None:
    source = reader("gzip", max_buffered_bytes=16 * 1024)
    source.feed(gzip.compress(b": nothing\n" * 10_000))
    # Without an event: after some slices the caller can yield to its loop.
    assert source.next_batch() is None
    assert source.is_parsing
    while source.is_parsing:
        assert source.next_batch() is None
    source.finish()


def test_a_truncated_compressed_body_is_an_error() -> None:
    source = reader("gzip")
    fed(source, gzip.compress(event(1))[:-9])
    with pytest.raises(TruncatedStreamError):
        source.finish()


def test_a_corrupt_body_is_an_error_after_its_events() -> None:
    source = reader("gzip", max_buffered_bytes=64 * 1024)
    compressed = gzip.compress(b"".join(map(event, range(1000))), 1)
    sink = Sink()
    assert not source.feed_to(compressed[:-8] + b"\0" * 8, sink.put)
    with pytest.raises(ProtocolError):
        source.next_batch()
    # All but those of the last slice, which zlib does not return.
    passed_on = [number for batch in data_of(sink.batches) for number in batch]
    assert passed_on == [str(number) for number in range(len(passed_on))]
    assert len(passed_on) == source.events > 500


def test_an_event_that_is_too_long_is_an_error() -> None:
    source = reader(max_event_bytes=10)
    source.feed(event(1) + b"data: " + b"x" * 20)
    batch = source.next_batch()
    assert batch is not None
    assert data_of([batch]) == [["1"]]
    with pytest.raises(BufferLimitError):
        source.next_batch()


def test_feed_to_passes_batches_on() -> None:
    source, sink = reader(), Sink()
    assert source.feed_to(event(1), sink.put)
    assert source.feed_to(event(2), sink.put)
    assert data_of(sink.batches) == [["1"], ["2"]]
    assert not source.is_parsing


def test_a_refused_batch_is_the_next_one() -> None:
    source, sink = reader(), Sink(room=1)
    assert source.feed_to(event(1), sink.put)
    assert not source.feed_to(event(2), sink.put)
    assert data_of(rest_of(source)) == [["2"]]


def test_the_last_batch_is_not_passed_on_by_feed_to() -> None:
    source, sink = reader(), Sink()
    assert not source.feed_to(event(1) + b"data: [DONE]\n\n", sink.put)
    assert sink.batches == []
    assert source.done_event is not None
    assert data_of(rest_of(source)) == [["1"]]


def test_feed_to_leaves_the_rest_of_a_long_chunk() -> None:
    source, sink = reader(max_buffered_bytes=8 * 1024), Sink()
    chunk = b"".join(map(event, range(10_000)))
    assert not source.feed_to(chunk, sink.put)
    assert 0 < len(sink.batches) < 100
    numbers = [number for batch in data_of(sink.batches + rest_of(source)) for number in batch]
    assert numbers == [str(number) for number in range(10_000)]


def test_discard_drops_unparsed_bytes() -> None:
    source = reader(max_buffered_bytes=8 * EVENT_OVERHEAD)
    source.feed(b"".join(map(event, range(5))))
    assert source.next_batch() is not None
    source.discard()
    assert source.rest() is None


def test_a_batch_absorbs_the_next() -> None:
    source = reader()
    (first,) = fed(source, event(1))
    (second,) = fed(source, b"id: b\nretry: 10\n" + event(2))
    charge = first.charge + second.charge
    first.absorb(second)
    assert data_of([first]) == [["1", "2"]]
    assert (first.events, first.charge, first.last_event_id, first.retry) == (2, charge, "b", 0.01)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=repr)
@pytest.mark.parametrize("has_error", [True, False])
def test_error_object_behind_an_event_that_arrives_in_two_parts(line_end: bytes, has_error: bool) -> None:
    """The rest of an event may look like an error object, and is none."""
    error = b'{"error": "busy"}'
    whole = b"id: 7" + line_end + b"data: " + error + 2 * line_end
    for cut_at in range(len(whole) + 1):
        source = reader()
        batches = fed(source, whole[:cut_at]) + fed(source, whole[cut_at:])
        if has_error:
            batches += fed(source, error + line_end)
        assert data_of(batches) == [[error.decode()]]
        assert source.ends_plainly is not has_error
        with pytest.raises(UpstreamError) if has_error else nullcontext():
            source.finish()


def test_error_object_is_found_behind_much_that_completes_no_event() -> None:
    source = reader()
    for _ in range(100):
        assert fed(source, b": ping\n\n" * 400) == []
    assert source.ends_plainly
    assert fed(source, b'{"error": "busy"}') == []
    assert not source.ends_plainly
    with pytest.raises(UpstreamError, match="busy"):
        source.finish()
