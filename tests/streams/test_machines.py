"""Parser, encoder and channel, each compared with a model under operations in random order."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sseqbridge._engine.channel import CLOSED, Channel, End, Outcome
from sseqbridge._exceptions import BufferLimitError, UsageError
from sseqbridge._sse.encoder import encode
from sseqbridge._sse.events import Comment, ServerSentEvent
from sseqbridge._sse.parser import EventStreamParser
from tests.sse.reference_parser import parse

pytestmark = pytest.mark.configurations("default")

# The explain phase of hypothesis takes minutes.
PHASES = (Phase.generate, Phase.shrink)
STEPS = settings(max_examples=60, stateful_step_count=30, phases=PHASES)

# The parser: after each chunk, its items are those of the standard for all bytes so far.

ends = st.sampled_from([b"\n", b"\r", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"])
fields = st.sampled_from(
    [
        *(b"data", b"data: ", b"data:a", b"data: b", b"event: e", b"event", b"id: 1", b"id: 2", b"id", b"id: 3\0"),
        *(b"retry: 500", b"retry: x", b"unknown: x", b": ping", b"data: c\n", b"data: d\n\n", b"data: e\r\r"),
    ]
)
odd_bytes = st.sampled_from(
    [b"", b":", b" ", b"\0", b"\xef\xbb\xbf", b"\xef", b"\xbb", b"\xbf", b"\xe2\x82", b"\xac", b"\xff"]
)
chunks = ends | fields | ends | fields | odd_bytes | st.binary(max_size=12)


class ParserMachine(RuleBasedStateMachine):
    """One stream over several connections."""

    @initialize(limit=st.sampled_from([1000, 1000, 20]), comments=st.booleans())
    def begin(self, limit: int, comments: bool) -> None:
        self.options: dict[str, Any] = {"max_event_bytes": limit, "comments": comments}
        self.connect("")

    def connect(self, last_event_id: str) -> None:
        self.initial_id = last_event_id
        self.stream = b""
        self.items: list[Any] = []
        self.parser = EventStreamParser(last_event_id=last_event_id, **self.options)

    @rule(chunks=st.lists(chunks, min_size=1, max_size=6))
    def feed(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            self.feed_one(chunk)
            self.agrees_with_the_standard()

    @rule(field=fields, ending=st.sampled_from([b"\n", b"\r", b"\r\n"]), at=st.integers(0, 2))
    def feed_a_line_that_is_cut_at_its_end(self, field: bytes, ending: bytes, at: int) -> None:
        self.feed([(field + ending)[: -1 - at], (field + ending)[-1 - at :]])

    def feed_one(self, chunk: bytes) -> None:
        was_refused = self.parser.error
        self.stream += b"" if was_refused else chunk
        try:
            self.items += self.parser.feed(chunk)
        except BufferLimitError as error:
            assert error is self.parser.error
            assert was_refused in (None, error)
        else:
            assert was_refused is None

    @precondition(lambda self: len(self.stream) > 100)
    @rule()
    def reconnect(self) -> None:
        self.connect(self.parser.last_event_id)

    def agrees_with_the_standard(self) -> None:
        expected = parse(self.stream, self.options["max_event_bytes"], self.initial_id)
        items = [item for item in expected.items if self.options["comments"] or isinstance(item, ServerSentEvent)]
        assert self.items == items
        assert (self.parser.last_event_id, self.parser.retry) == (expected.last_event_id, expected.retry)
        assert (self.parser.error is not None) == expected.refused


# The encoder: a parser that starts at any time reads the same events.

texts = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["", "\n", "a\r\nb\r", "\ufeff", ": ", "[DONE]"]
)
words = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1, max_size=5)
bad_words = st.sampled_from(["\n", "a\r", "\0", "a\nb", "\ud800"])
retries = st.none() | st.integers(0, 10_000).map(lambda milliseconds: milliseconds / 1000)


class EncoderMachine(RuleBasedStateMachine):
    """One stream, written event by event."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = b""
        self.items: list[ServerSentEvent | Comment] = []
        self.last_event_id = ""
        self.retry: float | None = None
        self.reader = EventStreamParser(comments=True)
        self.read: list[Any] = []

    def write(self, item: ServerSentEvent | Comment) -> None:
        frame = encode(item)
        self.stream += frame
        self.read += self.reader.feed(frame)

    @rule(kind=st.just("message") | words, data=texts, id=st.just("") | words, retry=retries)
    def event(self, kind: str, data: str, id: str, retry: float | None) -> None:
        self.write(ServerSentEvent(kind, data, id, retry))
        # An id applies to later events too, and every line break becomes a line feed.
        self.last_event_id = id or self.last_event_id
        self.retry = self.retry if retry is None else retry
        data = data.replace("\r\n", "\n").replace("\r", "\n")
        self.items.append(ServerSentEvent(kind, data, self.last_event_id, retry))

    @rule(text=texts)
    def comment(self, text: str) -> None:
        self.write(Comment(text))
        self.items += [Comment(line) for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]

    @rule(bad=bad_words, at=st.sampled_from(["event", "id"]))
    def event_that_cannot_be_encoded(self, bad: str, at: str) -> None:
        event = ServerSentEvent(data="x")
        setattr(event, at, bad)
        with pytest.raises(UsageError):
            self.write(event)

    @precondition(lambda self: self.items)
    @rule()
    def relay(self) -> None:
        """Encode the parsed events again, as a relay does. Their meaning stays the same."""
        self.stream = b"".join(map(encode, self.read))
        self.reader = EventStreamParser(comments=True)
        self.read = list(self.reader.feed(self.stream))

    @invariant()
    def reader_has_the_written_items(self) -> None:
        assert self.read == self.items
        assert parse(self.stream).items == self.items
        assert (self.reader.last_event_id, self.reader.retry) == (self.last_event_id, self.retry)


# The channel: one producer and one consumer on one loop, which runs only within a step.

charges = st.sampled_from([1, 2, 3]) | st.sampled_from([0, 5, 10, 11, 20, 100])


class ChannelMachine(RuleBasedStateMachine):
    """The model: a queue of numbered entries with charges, the waiters, and the entry that the consumer holds."""

    @initialize(limit=st.sampled_from([1, 7, 10, 20]))
    def begin(self, limit: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.limit = limit
        self.channel: Channel[int] = Channel(self.loop, limit)
        self.queue: deque[tuple[int | End, int]] = deque()
        self.charge_in_hand = 0
        self.number = 0
        self.ended = self.closed = False
        # The waiters: send() with its entry and charge, areceive(), and a function that notify() calls.
        self.sending: tuple[asyncio.Task[None], int, int] | None = None
        self.receiving: asyncio.Task[int | End] | None = None
        self.notified: list[int] = []
        self.is_notify_pending = False

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.channel.close()
            for task in (self.sending and self.sending[0], self.receiving):
                if task is not None:
                    self.loop.run_until_complete(task)
            self.loop.close()

    # The model.

    @property
    def held(self) -> int:
        return self.charge_in_hand + sum(charge for _, charge in self.queue)

    def fits(self, charge: int) -> bool:
        return not self.held or self.held + charge <= self.limit or self.closed

    def add(self, entry: int | End, charge: int) -> None:
        if not self.ended and not self.closed:
            self.ended = isinstance(entry, End)
            self.queue.append((entry, charge))

    def next_entry(self) -> int | End | None:
        if self.closed:
            return CLOSED
        if not self.queue:
            return None
        entry, self.charge_in_hand = self.queue.popleft()
        return entry

    def settle(self) -> None:
        """Run the loop's pending callbacks, and update the model."""
        for _ in range(6):
            self.loop.run_until_complete(asyncio.sleep(0))
        if self.sending is not None:
            task, number, charge = self.sending
            is_drained = self.closed or (self.fits(charge) and self.held <= self.limit // 2)
            assert task.done() == is_drained
            if is_drained:
                self.sending = None
                self.add(number, charge)
        if self.receiving is not None:
            entry = self.next_entry()
            assert self.receiving.done() == (entry is not None)
            if entry is not None:
                assert self.receiving.result() == entry
                self.receiving = None
        if self.is_notify_pending and (self.queue or self.closed):
            self.is_notify_pending = False
            assert self.notified == [1]
        assert not self.is_notify_pending or self.notified == []
        if not self.closed:
            assert self.channel.buffered == self.held
            assert self.channel.pending == len(self.queue)
            # A single entry may exceed the limit if the channel is empty.
            charged = [charge for charge in (self.charge_in_hand, *(charge for _, charge in self.queue)) if charge]
            assert self.held <= self.limit or len(charged) == 1 or self.is_overfull

    is_overfull = False

    # The producer, on the loop thread.

    def next_number(self) -> int:
        self.number += 1
        return self.number

    @precondition(lambda self: self.sending is None)
    @rule(charge=charges)
    def send(self, charge: int) -> None:
        number = self.next_number()
        fits = self.fits(charge)
        task = self.loop.create_task(self.channel.send(number, charge))
        if fits:
            self.add(number, charge)
        else:
            self.sending = task, number, charge
        self.settle()
        assert task.done() == (self.sending is None)

    @precondition(lambda self: self.sending is None)
    @rule(charge=st.integers(1, 3))
    def send_until_one_waits(self, charge: int) -> None:
        for _ in range(20):
            if self.sending is None:
                self.send(charge)

    @precondition(lambda self: self.sending is None)
    @rule(charge=charges, is_deferred=st.booleans())
    def send_nowait(self, charge: int, is_deferred: bool) -> None:
        number = self.next_number()
        # The callers of send_nowait() check the limit.
        self.is_overfull = self.is_overfull or not self.fits(charge)
        (self.channel.send_deferred if is_deferred else self.channel.send_nowait)(number, charge)
        self.add(number, charge)
        self.settle()

    @precondition(lambda self: self.sending is None)
    @rule(charge=charges)
    def try_send(self, charge: int) -> None:
        number = self.next_number()
        is_accepted = self.fits(charge) and not self.ended and not self.closed
        assert self.channel.try_send(number, charge) == is_accepted
        if is_accepted:
            self.add(number, charge)
        self.settle()

    @precondition(lambda self: self.sending is not None)
    @rule()
    def cancel_send(self) -> None:
        assert self.sending is not None
        task, self.sending = self.sending[0], None
        task.cancel()
        self.settle()
        assert task.cancelled()

    # Only after some entries, since later rules need an open channel.
    @precondition(lambda self: self.number > 10)
    @rule(outcome=st.sampled_from(["eof", "done"]))
    def end(self, outcome: Outcome) -> None:
        self.channel.end(End(outcome))
        self.add(End(outcome), 0)
        self.settle()

    @precondition(lambda self: self.number > 10)
    @rule()
    def close(self) -> None:
        self.channel.close()
        self.closed = True
        self.settle()

    # The consumer.

    def release(self) -> None:
        self.charge_in_hand = 0
        self.is_notify_pending = False

    def is_free(self) -> bool:
        return self.receiving is None and not self.is_notify_pending

    @precondition(is_free)
    @rule()
    def poll(self) -> None:
        self.release()
        assert self.channel.poll() == self.next_entry()
        self.settle()

    @precondition(is_free)
    @rule(is_async=st.booleans())
    def receive_without_waiting(self, is_async: bool) -> None:
        self.release()
        entry = self.next_entry()
        try:
            received: Any
            received = self.loop.run_until_complete(self.channel.areceive(0)) if is_async else self.channel.receive(0)
        except TimeoutError:
            received = None
        assert received == entry
        self.settle()

    @precondition(is_free)
    @rule()
    def receive(self) -> None:
        self.release()
        self.receiving = self.loop.create_task(self.channel.areceive())
        self.settle()

    @precondition(lambda self: self.receiving is not None)
    @rule()
    def cancel_receive(self) -> None:
        assert self.receiving is not None
        task, self.receiving = self.receiving, None
        task.cancel()
        self.settle()
        assert task.cancelled()

    @precondition(is_free)
    @rule()
    def notify(self) -> None:
        self.release()
        notified = self.notified = []
        self.is_notify_pending = True
        self.channel.notify(lambda: notified.append(1))
        self.settle()


def machine(kind: type[RuleBasedStateMachine]) -> Any:
    kind.TestCase.settings = STEPS
    return pytest.mark.heavy(kind.TestCase)


TestParser = machine(ParserMachine)
TestEncoder = machine(EncoderMachine)
TestChannel = machine(ChannelMachine)
