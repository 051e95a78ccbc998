"""Readers that join a tee at the moment at which the last one leaves, or whose joining is interrupted."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from sseqbridge import EventStream, UsageError, request_sse, tee
from sseqbridge._engine.memory import memory
from sseqbridge._engine.responses import Head
from sseqbridge._streams import broadcaster as broadcasters
from sseqbridge._streams.broadcaster import Broadcaster
from sseqbridge._streams.cursor import Cursor
from sseqbridge._streams.decoding import Decoder
from sseqbridge._streams.reader import ItemReader
from sseqbridge._streams.tee import Tee
from sseqbridge.testing import SSEServer, send, silence
from tests.support import in_thread

from .test_tee_races import Upstream

pytestmark = pytest.mark.configurations("default", "plain")


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def broadcaster(upstream: Upstream) -> Broadcaster[str]:
    head = Head(200, httpx.Headers(), "HTTP/1.1")
    source: ItemReader[str] = ItemReader(Cursor(upstream, head, Decoder("text", None, "raise"), None, None))
    return Broadcaster(source, ends_slow=False, max_buffered=1 << 20, max_history=0)


class Passage:
    """A place in the code of another thread, which waits there until the test lets it pass."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.may_pass = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.may_pass.wait(30)


def test_reader_that_joins_after_the_last_has_left_is_refused(
    monkeypatch: pytest.MonkeyPatch, upstream: Upstream, broadcaster: Broadcaster[str]
) -> None:
    """The last reader leaves between the check and the entry of the new one."""
    last = broadcaster.add(replay=False)
    broadcaster.start()

    def leaving(*args: Any) -> None:
        memory.enter(*args)
        last.abort()

    with monkeypatch.context() as patch, pytest.raises(UsageError, match="left"):
        patch.setattr(broadcasters, "memory", SimpleNamespace(enter=leaving))
        broadcaster.add(replay=False)
    assert upstream.aborted.is_set()
    assert broadcaster.open_readers == 0
    upstream.loop.run()


def test_reader_that_leaves_after_another_has_joined_aborts_nothing(
    monkeypatch: pytest.MonkeyPatch, upstream: Upstream, broadcaster: Broadcaster[str]
) -> None:
    """The new reader enters between the two checks of the one that leaves."""
    last = broadcaster.add(replay=False)
    broadcaster.start()
    entering, checking = Passage(), Passage()
    is_left = Broadcaster._is_left

    def enters(*args: Any) -> None:
        entering()
        memory.enter(*args)

    def checks(checked: Broadcaster[str]) -> bool:
        checking()
        return is_left(checked)

    class Leaving(deque[object]):
        def append(self, entry: object, /) -> None:
            super().append(entry)
            entering.may_pass.set()
            assert checking.reached.wait(30)

    monkeypatch.setattr(broadcasters, "memory", SimpleNamespace(enter=enters))
    monkeypatch.setattr(Broadcaster, "_is_left", checks)
    broadcaster._leaving = Leaving()
    joining = in_thread(lambda: broadcaster.add(replay=False))
    assert entering.reached.wait(30)
    last.abort()
    checking.may_pass.set()
    reader = joining.result(30)
    monkeypatch.undo()
    assert not upstream.aborted.is_set()
    upstream.send("after the race")
    assert EventStream(reader).poll() == ["after the race"]
    broadcaster._leaving = deque()
    reader.abort()
    assert upstream.aborted.is_set()
    upstream.loop.run()


def test_reader_whose_joining_is_interrupted_keeps_no_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(reader: object) -> None:
        raise KeyboardInterrupt

    with SSEServer([send(1), silence()]) as server:
        readers = tee(request_sse(server.url), 1)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Tee, "_stream_of", staticmethod(interrupted))
            readers.add()
        assert next(readers[0]) == 1
        readers[0].close()
        server.requests[0].wait_aborted()
