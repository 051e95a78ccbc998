"""Leases: a producer is lost only if its lease stays missing, unless it has released the lease itself."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import threading
from typing import Any

import pytest

from sseqbridge import Bridge, ProducerLostError, request_sse
from sseqbridge._engine.loop_state import LoopState
from sseqbridge._http.client import ClientPool
from sseqbridge.resume import RedisLog
from sseqbridge.resume._entries import START, Position
from sseqbridge.resume._hub import Hub
from sseqbridge.resume._memory import MemoryStore
from sseqbridge.resume._store import Liveness, LogSettings
from sseqbridge.resume._topic import Topic
from sseqbridge.testing import SSEServer, hold, send, silence
from tests.redis_support import RedisServer, needs_redis
from tests.support import until

from .support import DONE, LEASE, LogCaller, Logs, check_often, claim_token, expire_lease_when_killed, new_store


class Follower:
    """A subscriber that counts lost leases."""

    is_reader = True
    position = START

    def __init__(self) -> None:
        self.losses = 0

    def on_lease_lost(self) -> None:
        self.losses += 1


class FakeLoop:
    now = 0.0

    def time(self) -> float:
        return self.now


class FakeHub:
    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.settings = LogSettings(10, 3600, None, None, 30)
        self.disturbed_at: float | None = None

    def tail(self, topic: Topic) -> None:
        pass


HELD, MISSING, RELEASED = Liveness(True, None), Liveness(False, None), Liveness(False, None, is_certain=True)


@pytest.fixture
def hub() -> FakeHub:
    return FakeHub()


@pytest.fixture
def topic(hub: FakeHub) -> Topic:
    made: Any = Topic
    return made(hub, "k")  # type: ignore[no-any-return]


@pytest.fixture
def follower(topic: Topic) -> Follower:
    made: Any = Follower()
    topic.subscribe(made)
    return made  # type: ignore[no-any-return]


def test_missing_lease_is_lost_after_the_grace(hub: FakeHub, topic: Topic, follower: Follower) -> None:
    grace = hub.settings.grace
    assert grace > hub.settings.renewal_interval
    topic.update_liveness(MISSING)
    assert (follower.losses, topic.recheck_at) == (0, grace)
    hub.loop.now = 0.9 * grace
    topic.update_liveness(MISSING)
    assert follower.losses == 0
    hub.loop.now = grace
    topic.update_liveness(MISSING)
    assert follower.losses == 1


def test_renewed_lease_is_not_lost(hub: FakeHub, topic: Topic, follower: Follower) -> None:
    for _ in range(5):
        topic.update_liveness(MISSING)
        hub.loop.now += 0.9 * hub.settings.grace
        topic.update_liveness(HELD)
        assert topic.recheck_at is None
        hub.loop.now += 1
    assert follower.losses == 0


def test_lease_that_is_renewed_between_checks_is_not_lost(hub: FakeHub, topic: Topic, follower: Follower) -> None:
    """It may be evicted again before each check; the TTL of the fence shows the renewals."""
    for _ in range(10):
        topic.update_liveness(MISSING._replace(fence_ttl=3_599_000))
        hub.loop.now += hub.settings.liveness_interval
    assert follower.losses == 0
    ttl = 3_599_000
    for _ in range(3):
        hub.loop.now += hub.settings.liveness_interval
        ttl -= round(1000 * hub.settings.liveness_interval)
        topic.update_liveness(MISSING._replace(fence_ttl=ttl))
    assert follower.losses == 1


def test_evicted_fence_shows_no_renewal(hub: FakeHub, topic: Topic, follower: Follower) -> None:
    for ttl in (3_600_000, -1, -1):
        topic.update_liveness(MISSING._replace(fence_ttl=ttl))
        hub.loop.now += hub.settings.liveness_interval
    assert follower.losses == 1


def test_released_lease_is_lost_at_once(topic: Topic, follower: Follower) -> None:
    topic.update_liveness(RELEASED)
    assert follower.losses == 1


def test_lease_is_not_lost_before_the_last_entry_has_come(hub: FakeHub, topic: Topic, follower: Follower) -> None:
    topic.position = Position(1, 1)
    behind = MISSING._replace(last=Position(1, 2))
    topic.update_liveness(behind)
    hub.loop.now = 100
    topic.update_liveness(behind)
    assert follower.losses == 0
    topic.position = Position(1, 2)
    topic.update_liveness(behind)
    assert follower.losses == 1


@pytest.mark.parametrize("liveness", [MISSING, RELEASED])
def test_lease_is_not_lost_shortly_after_an_outage(
    hub: FakeHub, topic: Topic, follower: Follower, liveness: Liveness
) -> None:
    hub.disturbed_at = 0.0
    for hub.loop.now in (1, 9.9):
        topic.update_liveness(liveness)
    assert follower.losses == 0
    hub.loop.now = 10.1
    topic.update_liveness(liveness)
    assert follower.losses == 1


class InstantSelector(selectors.DefaultSelector):
    """Does not wait: its time jumps to the next timer."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "no timer is left that could end this wait"
        self.now += timeout
        return super().select(0)


class InstantLoop(asyncio.SelectorEventLoop):
    """A loop whose timers are due at once, in order and exactly on time, however busy the machine is."""

    def __init__(self) -> None:
        self._selector_of_time = InstantSelector()
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        return self._selector_of_time.now


def test_missing_lease_is_checked_again_after_the_grace() -> None:
    """Regular checks come at other times: the loss would be noticed later than `lease` after the last renewal."""
    settings = LogSettings(100, 3600, None, None, 30)
    checks: list[float] = []

    class Store(MemoryStore):
        async def heartbeat(self, keys: Any, reader: str) -> list[Liveness]:
            checks.append(loop.time())
            return [MISSING for _ in keys]

    async def main() -> None:
        hub = Hub(LoopState(loop, ClientPool()), Store(settings), settings)
        follower: Any = Follower()
        hub.topic("k").register(follower)
        hub.topic("k").subscribe(follower)
        while not follower.losses:
            await asyncio.sleep(0.125)
        await hub.aclose()

    with contextlib.closing(InstantLoop()) as loop:
        loop.run_until_complete(main())
    assert checks == pytest.approx([0, settings.liveness_interval, settings.grace], abs=0.01)


# Real stores.


@needs_redis
def test_evicted_lease_ends_no_reader(server: RedisServer) -> None:
    """The key of the lease may be evicted between two renewals, just when it is checked."""
    go = threading.Event()
    # Leases are renewed every 0.45 s, and checked every 0.375 s.
    options: dict[str, Any] = {"lease": 2.5, "prefix": "evicted"}
    with (
        SSEServer([send(1), hold(go), send(2), DONE]) as upstream,
        RedisLog.from_url(server.url, **options) as log,
        RedisLog.from_url(server.url, **options) as elsewhere,
        server.client() as client,
    ):
        readers = [log.open("k", lambda: request_sse(upstream.url)), *(elsewhere.open("k") for _ in range(3))]
        assert [next(reader) for reader in readers] == [1] * 4
        for _ in range(8):
            until(lambda: client.delete("evicted:{k}:lease"))
            # A new reader finds no lease either.
            readers.append(elsewhere.open("k"))
            assert next(readers[-1]) == 1
            assert elsewhere.produce("k", lambda: request_sse(upstream.url), takeover=True) is None
        go.set()
        assert [(reader.collect(), reader.outcome) for reader in readers] == [([2], "done")] * len(readers)
        assert len(upstream.requests) == 1


@needs_redis
@pytest.mark.parametrize("takeover", [False, True])
def test_released_lease_is_noticed_without_the_grace(server: RedisServer, takeover: bool) -> None:
    """With leases and graces of minutes."""
    with SSEServer([send(1), silence()]) as upstream, Bridge() as bridge:
        log = RedisLog.from_url(server.url, lease=600, prefix=f"released-{takeover}", bridge=bridge)
        elsewhere = RedisLog.from_url(server.url, lease=600, prefix=f"released-{takeover}")
        reader = log.open("k", lambda: request_sse(upstream.url, bridge=bridge))
        assert next(reader) == 1
        log.close()
        if takeover:
            again = elsewhere.open("k", lambda: request_sse(upstream.url), takeover=True)
            assert [again.next(30) for _ in range(3)] == [1, {"restart": True}, 1]
            again.close()
        else:
            again = elsewhere.open("k")
            assert again.next(30) == 1
            with pytest.raises(ProducerLostError):
                again.next(30)
        elsewhere.close()


def test_lost_stream_is_taken_over_by_produce(logs: Logs, caller: LogCaller) -> None:
    log, store = logs.killable()
    store.kill_at = ("append", 2, False)
    go = threading.Event()
    with SSEServer([send(0), hold(go), send(1), DONE]) as upstream:
        reading = caller.open(log, "k", caller.start(upstream.url))
        assert reading.next() == 0
        go.set()
        caller.run_blocking(lambda: expire_lease_when_killed(logs, store))
        assert caller.produce(log, "k", caller.start(upstream.url), takeover=True) == "done"
        assert caller.open(log, "k").items() == [0, {"restart": True}, 0, 1]


@needs_redis
def test_release_marks_the_fence(server: RedisServer) -> None:
    async def main() -> None:
        store = new_store(log)
        token = await claim_token(store, "k")
        await store.append(token, 0, [{"data": "a"}])
        assert (await store.heartbeat(["k"], "reader"))[0][::3] == (True, False)
        for _ in range(2):
            await store.release(token)
            assert (await store.heartbeat(["k"], "reader"))[0][::3] == (False, True)
        found = await store.claim("k", "you", may_begin=True, takeover=False)
        assert (found.state, found.is_certain) == ("lost", True)
        # Neither a late renewal nor a late release concerns the next producer.
        taken = await store.claim("k", "you", may_begin=True, takeover=True, longest_ttl=None)
        assert taken.fence > token.fence
        await store.release(token)
        assert (await store.heartbeat(["k"], "reader"))[0][::3] == (True, False)
        await store.aclose()

    log = check_often(RedisLog.from_url(server.url, lease=LEASE, prefix="marked"))
    asyncio.run(main())


@needs_redis
def test_lost_is_certain_only_after_a_release(server: RedisServer) -> None:
    async def main() -> None:
        store = new_store(log)
        token = await claim_token(store, "k")
        await store.append(token, 0, [{"data": "a"}])
        with server.client() as client:
            client.delete(store.key_of("k", "lease"))
        found = await store.claim("k", "you", may_begin=True, takeover=True, longest_ttl=None)
        assert (found.state, found.is_certain) == ("lost", False)
        assert 0 < found.fence_ttl <= 3600_000
        await store.renew(token)
        with server.client() as client:
            client.delete(store.key_of("k", "lease"))
        # The fence would have a shorter TTL now, had the lease not been renewed.
        for takeover in (False, True):
            found = await store.claim("k", "you", may_begin=True, takeover=takeover, longest_ttl=found.fence_ttl - 1000)
            assert (found.state, found.is_certain) == ("lost", False)
        found = await store.claim("k", "you", may_begin=True, takeover=False, longest_ttl=found.fence_ttl)
        assert (found.state, found.is_certain) == ("lost", True)
        assert (await store.claim("k", "you", may_begin=True, takeover=True)).state == "elected"
        await store.aclose()

    log = check_often(RedisLog.from_url(server.url, lease=LEASE, prefix="uncertain"))
    asyncio.run(main())
