"""end_all() calls no code of the application's: it may run in a signal handler."""

from __future__ import annotations

from collections.abc import Iterator

from sseqbridge import relay
from sseqbridge.relay import RelayEnd


class Answer:
    """An iterable whose close() fails, and takes note of the function that calls it."""

    is_ending = False
    closed_while_ending: list[bool]

    def __init__(self) -> None:
        self.closed_while_ending = []

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def close(self) -> None:
        self.closed_while_ending.append(self.is_ending)


def test_iterable_that_was_not_read_is_closed_later() -> None:
    ends: list[RelayEnd] = []
    answer = Answer()
    frames = relay.frames(lambda: answer, on_end=ends.append)
    frames.open()
    running = relay.frames(iter(["b", "c"]), on_end=ends.append)
    assert b"data: b" in next(running)
    answer.is_ending = True
    relay.end_all()
    answer.is_ending = False
    assert answer.closed_while_ending == []
    assert b"event: shutdown" in b"".join(running)
    assert b"event: shutdown" in b"".join(frames)
    frames.close()
    assert answer.closed_while_ending == [False]
    assert [end.outcome for end in ends] == ["cancelled", "cancelled"]
