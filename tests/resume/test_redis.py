"""RedisLog alone: keys and connections, failures of Redis, several processes, and a Cluster."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from sseqbridge import (
    EventsLostError,
    LogAccessError,
    LogError,
    LogFullError,
    LogUnavailableError,
    ProducerLostError,
    UsageError,
    relay,
    request_sse,
)
from sseqbridge._streams.stream import reader_of
from sseqbridge.resume import RedisLog, _lua, _redis_tail
from sseqbridge.resume import redis as redis_log
from sseqbridge.resume._entries import START
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, send, silence, wait
from tests.redis_support import RedisServer, needs_redis, redis_server
from tests.resume import kills as resume_kills
from tests.support import ROOT, until

from .support import DONE, LEASE, check_often, hub_of, new_store

pytestmark = needs_redis


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    with shared.client() as client:
        client.flushall()
    return shared


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """A server that the test may kill."""
    with redis_server() as running:
        yield running


def keys_of(server: RedisServer) -> set[str]:
    with server.client() as client:
        return {str(key) for key in client.scan_iter(count=1000)}


# Keys and connections.


def test_keys_of_a_stream_have_one_hash_tag(server: RedisServer) -> None:
    with SSEServer([send(1), silence()]) as upstream, RedisLog.from_url(server.url, prefix="app:1") as log:
        with log.open("chat 7", lambda: request_sse(upstream.url)) as events:
            assert next(events) == 1
            own = {key for key in keys_of(server) if ":wake:" not in key}
            assert own == {f"app:1:{{chat 7}}:{what}" for what in ("events", "lease", "fence", "readers")}
            with server.client() as client:
                assert all(client.pttl(key) > 0 for key in keys_of(server))
                assert client.xrange("app:1:{chat 7}:events")[-1][1] == {"data": "1"}
        assert log.cancel("chat 7")
    with server.client() as client:
        assert client.xrange("app:1:{chat 7}:events")[-1][1] == {"v": "2", "cancel": "cancelled"}


def test_prefixes_separate_logs(server: RedisServer) -> None:
    with (
        SSEServer([send(1), DONE]) as upstream,
        RedisLog.from_url(server.url, prefix="a") as one,
        RedisLog.from_url(server.url, prefix="a:b") as other,
    ):
        for log in (one, other):
            assert log.open("k", lambda: request_sse(upstream.url)).collect() == [1]
        assert len(upstream.requests) == 2
        assert one.delete("k")
        assert other.open("k").collect() == [1]


@pytest.mark.parametrize("prefix", ["", "a{", "}", "a\n", 7])
def test_invalid_prefixes_are_rejected(prefix: Any) -> None:
    with pytest.raises(UsageError, match="prefix"):
        RedisLog.from_url("redis://127.0.0.1", prefix=prefix)


@pytest.mark.parametrize("url", ["", "localhost", "http://localhost", None, "redis://127.0.0.1:x"])
def test_invalid_urls_are_rejected(url: Any) -> None:
    with pytest.raises(UsageError, match="redis://"):
        RedisLog.from_url(url)


def test_client_must_be_a_function_and_may_have_any_configuration(server: RedisServer) -> None:
    with pytest.raises(UsageError, match="function"):
        RedisLog(redis.asyncio.Redis(port=server.port))  # type: ignore[arg-type]
    # The usual configurations of clients.
    for options in ({}, {"decode_responses": True}, {"protocol": 2}, {"protocol": 3, "legacy_responses": False}):
        with (
            SSEServer([send(1), send("ü"), DONE]) as upstream,
            RedisLog(lambda: redis.asyncio.Redis(port=server.port, **options)) as log,  # noqa: B023
        ):
            assert log.open("k", lambda: request_sse(upstream.url), decode="text").collect() == ["1", "ü"]
            assert log.open("k", decode="text").collect() == ["1", "ü"]
            log.delete("k")


def test_two_connections_serve_all_readers_and_producers(server: RedisServer) -> None:
    go = threading.Event()
    with (
        SSEServer([send(1), hold(go), send(2), DONE]) as upstream,
        RedisLog.from_url(server.url, lease=LEASE) as log,
        contextlib.ExitStack() as stack,
    ):
        streams = [stack.enter_context(log.open(f"k{n % 20}", lambda: request_sse(upstream.url))) for n in range(200)]
        assert [next(stream) for stream in streams] == [1] * 200
        with server.client() as client:
            # Redis may not have noticed yet that connections of an earlier test are closed.
            until(lambda: len([each for each in client.client_list() if each["cmd"] != "client|list"]) == 2, 30)
        go.set()
        assert [stream.collect() for stream in streams] == [[2]] * 200
        assert len(upstream.requests) == 20


def test_new_reader_ends_the_blocking_xread(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than the test waits.
    monkeypatch.setattr(_redis_tail, "_BLOCK_MILLISECONDS", 300_000)
    options = {"socket_timeout": None}
    with (
        SSEServer([send(1), silence()]) as upstream,
        RedisLog.from_url(server.url, client_options=options) as log,
        contextlib.ExitStack() as stack,
    ):
        for n in range(20):
            stream = stack.enter_context(log.open(f"k{n}", lambda: request_sse(upstream.url)))
            assert stream.next(30) == 1


def test_flushed_scripts_are_sent_again(server: RedisServer) -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), send(2), DONE]) as upstream, RedisLog.from_url(server.url) as log:
        stream = log.open("k", lambda: request_sse(upstream.url))
        assert next(stream) == 1
        with server.client() as client:
            client.script_flush()
        go.set()
        assert stream.collect() == [2]


def test_foreign_redis_keys_raise_log_error(server: RedisServer) -> None:
    with RedisLog.from_url(server.url) as log, server.client() as client:
        client.xadd("sseqbridge:{k}:events", {"data": "x"}, id="99999999999999999-1")
        with pytest.raises(LogError, match="no log has written it"):
            log.open("k")
        client.set("sseqbridge:{other}:events", "x")
        with pytest.raises(LogError, match="WRONGTYPE"):
            log.open("other")


@pytest.mark.parametrize("at", ["message", "done"])
def test_resuming_at_the_end_ends_under_a_leftover_lease(server: RedisServer, at: str) -> None:
    with SSEServer([send(1), DONE]) as upstream, check_often(RedisLog.from_url(server.url, lease=LEASE)) as log:
        stream = log.open("k", lambda: request_sse(upstream.url))
        assert stream.collect() == [1]
        with server.client() as client:
            token = client.get("sseqbridge:{k}:fence")
            assert client.set("sseqbridge:{k}:lease", token, px=700)
        done = reader_of(stream).cursor.done_event
        assert done is not None
        last_event_id = done.id if at == "done" else stream.last_event_id
        with log.open("k", last_event_id=last_event_id) as again:
            with pytest.raises(StopIteration):
                again.next(30)
            assert again.outcome == "done"


def keys_and_token(client: redis.Redis) -> tuple[list[str], str]:
    token = client.get("sseqbridge:{k}:fence")
    return [f"sseqbridge:{{k}}:{what}" for what in ("events", "lease", "fence", "readers")], str(token)


def test_delayed_renewals_and_writes_do_not_revive_the_lease(server: RedisServer) -> None:
    with SSEServer([send(1), DONE]) as upstream, RedisLog.from_url(server.url) as log, server.client() as client:
        assert log.open("k", lambda: request_sse(upstream.url)).collect() == [1]
        keys, token = keys_and_token(client)
        assert client.eval(_lua.RENEW, 4, *keys, token, 7000, 60_000) == 0
        assert client.eval(_lua.WRITE, 3, *keys[:3], token, 7000, 60_000, 1000, 0, 1, 2, "data", "1") == 1
        assert not client.exists("sseqbridge:{k}:lease")


def test_end_follows_entries_with_a_lost_reply(server: RedisServer) -> None:
    with server.client() as client:
        keys, _ = keys_and_token(client)
        entries = [2, "data", "1", 2, "data", "2"]
        assert client.eval(_lua.WRITE, 3, *keys[:3], "9:x", 7000, 60_000, 1000, 0, 0, *entries) == 1
        for _ in range(2):
            end = [2, "cancel", "abandoned"]
            assert client.eval(_lua.WRITE, 3, *keys[:3], "9:x", 0, 60_000, 1000, 0, 0, *end) == 1
        assert [entry_id for entry_id, _ in client.xrange(keys[0])] == ["9-0", "9-1", "9-2"]


@pytest.mark.parametrize("is_written", [False, True])
def test_evicted_fence_still_rejects_stale_tokens(server: RedisServer, is_written: bool) -> None:
    with SSEServer([send(1), silence()]) as upstream, RedisLog.from_url(server.url) as log, server.client() as client:
        stream = log.open("k", lambda: request_sse(upstream.url))
        assert next(stream) == 1
        keys, token = keys_and_token(client)
        client.delete("sseqbridge:{k}:fence", f"sseqbridge:{{k}}:{'lease' if is_written else 'events'}")
        assert client.eval(_lua.WRITE, 3, *keys[:3], "5:old", 7000, 60_000, 1000, 0, 3, 2, "data", "x") == 0
        assert client.eval(_lua.RENEW, 4, *keys, "5:old", 7000, 60_000) == -1
        assert client.get("sseqbridge:{k}:lease") in (None, token)
        stream.close()
        log.cancel("k")


# Failures of Redis.


def test_restart_of_redis_loses_nothing(own: RedisServer) -> None:
    steps: list[Step] = []
    for n in range(60):
        steps += [send(n), wait(0.02)]
    with SSEServer([*steps, DONE]) as upstream, check_often(RedisLog.from_url(own.url, lease=LEASE)) as log:
        streams = [log.open("k", lambda: request_sse(upstream.url)) for _ in range(3)]
        assert [next(stream) for stream in streams] == [0, 0, 0]
        for _ in range(2):
            since = hub_of(log).disturbed_at
            own.kill()
            until(lambda: hub_of(log).disturbed_at != since)  # noqa: B023
            own.start()
            assert streams[0].next(30) > 0
        late = log.open("k")
        assert late.collect() == list(range(60))
        for stream in streams[1:]:
            assert stream.collect() == list(range(1, 60))
        assert streams[0].collect()[-1] == 59


def test_restart_longer_than_the_lease_loses_nothing(own: RedisServer) -> None:
    go = threading.Event()
    with (
        SSEServer([send(0), hold(go), send(1), DONE]) as upstream,
        check_often(RedisLog.from_url(own.url, lease=LEASE)) as log,
        own.client() as client,
    ):
        stream = log.open("k", lambda: request_sse(upstream.url))
        assert next(stream) == 0
        # As if the lease expired during the restart. No other command runs between these two.
        pipeline = client.pipeline(transaction=False)
        pipeline.delete("sseqbridge:{k}:lease")
        pipeline.execute_command("SHUTDOWN", "NOSAVE")
        with pytest.raises(redis.ConnectionError):
            pipeline.execute()
        own.kill()
        go.set()
        until(lambda: hub_of(log).disturbed_at is not None)
        own.start()
        assert stream.collect() == [1]


def test_lasting_outage_raises_log_unavailable_error(own: RedisServer) -> None:
    with SSEServer([send(0), silence()]) as upstream, RedisLog.from_url(own.url, outage=0.5) as log:
        stream = log.open("k", lambda: request_sse(upstream.url))
        assert next(stream) == 0
        own.kill()
        with pytest.raises(LogUnavailableError, match=r"out for 0\.5 s") as caught:
            next(stream)
        assert isinstance(caught.value.__cause__, (redis.ConnectionError, redis.TimeoutError))
        upstream.requests[0].wait_aborted(30)
        with pytest.raises(LogUnavailableError):
            log.open("other", lambda: request_sse(upstream.url))


def test_entries_lost_by_redis_raise_events_lost_error(own: RedisServer) -> None:
    go = threading.Event()
    with SSEServer([send(0), send(1), hold(go), send(2), DONE]) as upstream, RedisLog.from_url(own.url) as log:
        stream = log.open("k", lambda: request_sse(upstream.url))
        assert [next(stream), next(stream)] == [0, 1]
        with own.client() as client:
            client.flushall()
        go.set()
        # A reader that has all lost entries continues; a later reader gets the error.
        assert stream.collect() == [2]
        with pytest.raises(EventsLostError):
            log.open("k")


def test_wrong_credentials_raise_log_access_error() -> None:
    with redis_server("--requirepass", "secret-7") as server:
        for url in (server.url, f"redis://:wrong-9@127.0.0.1:{server.port}"):
            with RedisLog.from_url(url) as log:
                with pytest.raises(LogAccessError, match="credentials") as caught:
                    log.open("k", lambda: request_sse("http://127.0.0.1:1/"))
                assert isinstance(caught.value.__cause__, redis.RedisError)
                assert "wrong-9" not in f"{caught.value!r} {log!r}"
        with RedisLog.from_url(f"redis://:secret-7@127.0.0.1:{server.port}") as log:
            with redis.Redis(port=server.port, password="secret-7") as client:
                client.execute_command("ACL", "SETUSER", "poor", "on", ">p", "~*", "+@all", "-eval", "-evalsha")
            assert not log.cancel("k")
            with (
                RedisLog.from_url(f"redis://poor:p@127.0.0.1:{server.port}") as poor,
                pytest.raises(LogAccessError, match="credentials"),
            ):
                poor.open("k")


def test_full_memory_raises_log_full_error() -> None:
    def script(request: ReceivedRequest) -> Iterator[Step]:
        while True:
            yield send("x" * 10_000)

    with (
        redis_server("--maxmemory", "4mb") as server,
        SSEServer(script) as upstream,
        check_often(RedisLog.from_url(server.url, lease=LEASE)) as log,
        check_often(RedisLog.from_url(server.url, lease=LEASE)) as elsewhere,
    ):
        stream = log.open("k", lambda: request_sse(upstream.url, decode="text"), decode="text")
        other = elsewhere.open("k", decode="text")
        with pytest.raises(LogFullError, match="maxmemory"):
            while True:
                next(stream)
        upstream.requests[0].wait_aborted(30)
        # The written entries can still be read, and readers of other processes get an error.
        with pytest.raises(ProducerLostError):
            while True:
                other.next(30)
        with pytest.raises(LogFullError):
            log.produce("another", lambda: request_sse(upstream.url))


def test_hanging_redis_is_an_outage(own: RedisServer) -> None:
    go = threading.Event()
    options = {"socket_timeout": 2.5}
    with (
        SSEServer([send(0), hold(go), send(1), DONE]) as upstream,
        RedisLog.from_url(own.url, client_options=options) as log,
    ):
        stream = log.open("k", lambda: request_sse(upstream.url))
        assert next(stream) == 0
        with own.stopped():
            go.set()
            until(lambda: hub_of(log).disturbed_at is not None, 30)
        assert stream.collect() == [1]


def test_closed_store_raises_log_error(server: RedisServer) -> None:
    async def main() -> None:
        store: Any = new_store(RedisLog.from_url(server.url))
        await store.read("k", START, 1)
        tail = store.new_tail()
        await store.aclose()
        with pytest.raises(LogError, match="closed"):
            await store.read("k", START, 1)
        # A wake-up after the end of the store is ignored.
        tail.is_reading = True
        tail.wake()
        await asyncio.gather(*tail.wake_tasks)

    asyncio.run(main())


@pytest.mark.parametrize("missing", ["redis", "redis.driver_info"])
def test_missing_redis_py_raises_import_error(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    spec = importlib.util.spec_from_file_location("sseqbridge.resume.tried", str(redis_log.__file__))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if missing == "redis":
        with pytest.raises(ImportError, match=r"pip install 'sseqbridge\[redis\]'"):
            spec.loader.exec_module(module)
    else:
        spec.loader.exec_module(module)
        assert not module._DRIVER


# Several processes.

PROCESS = """
    import os, signal, sys, time
    from sseqbridge import request_sse
    from sseqbridge.resume import RedisLog

    redis_url, upstream, what, lease = sys.argv[1:5]
    with RedisLog.from_url(redis_url, lease=float(lease)) as log:
        start = lambda: request_sse(upstream)
        if what == "produce":
            print(log.produce("k", start), flush=True)
        elif what == "read":
            for item in log.open("k", wait=30):
                print(item, flush=True)
            print("end", flush=True)
"""


@contextlib.contextmanager
def process(url: str, upstream: str, what: str, lease: float = LEASE) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), url, upstream, what, str(lease)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as running:
        try:
            yield running
        finally:
            running.kill()


def lines(running: subprocess.Popen[str], count: int) -> list[str]:
    assert running.stdout is not None
    return [running.stdout.readline().strip() for _ in range(count)]


def test_processes_read_a_stream_of_another(server: RedisServer) -> None:
    go = threading.Event()
    with (
        SSEServer([send(1), hold(go), send(2), DONE]) as upstream,
        process(server.url, upstream.url, "produce") as producer,
        process(server.url, upstream.url, "read") as reader,
        RedisLog.from_url(server.url, lease=LEASE) as log,
    ):
        with log.open("k", wait=30) as events:
            assert [next(events), *lines(reader, 1)] == [1, "1"]
            go.set()
            assert events.collect() == [2]
        assert lines(reader, 2) == ["2", "end"]
        assert lines(producer, 1) == ["done"]
        assert (producer.wait(30), reader.wait(30)) == (0, 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_dead_process_ends_its_readers_and_can_be_replaced(server: RedisServer, number: signal.Signals) -> None:
    with (
        SSEServer([send(1), send(2), silence()]) as upstream,
        SSEServer([send(7), DONE]) as later,
        # Expires by Redis's clock; long enough for a renewal on a busy machine.
        process(server.url, upstream.url, "produce", lease=5) as producer,
        RedisLog.from_url(server.url, lease=5) as log,
    ):
        reader = log.open("k", wait=30)
        assert [next(reader), next(reader)] == [1, 2]
        producer.send_signal(number)
        with pytest.raises(ProducerLostError, match="takeover=True"):
            reader.next(30)
        heir = log.open("k", lambda: request_sse(later.url), takeover=True)
        assert heir.collect() == [1, 2, {"restart": True}, 7]
        if number == signal.SIGSTOP:
            # The stopped producer continues with a stale token.
            producer.send_signal(signal.SIGCONT)
            assert lines(producer, 1) == ["closed"]
            upstream.requests[0].wait_aborted(30)
            assert log.open("k", replay="all").collect() == [1, 2, {"restart": True}, 7]


def test_ending_process_releases_its_lease(server: RedisServer) -> None:
    with (
        SSEServer([send(1), silence()]) as upstream,
        process(server.url, upstream.url, "produce") as producer,
        RedisLog.from_url(server.url, lease=LEASE) as log,
    ):
        reader = log.open("k", wait=30)
        assert next(reader) == 1
        producer.send_signal(signal.SIGINT)
        producer.wait(30)
        upstream.requests[0].wait_aborted(30)
        assert "sseqbridge:{k}:lease" not in keys_of(server)
        reader.close()


def test_reader_in_another_process_prevents_abandonment(server: RedisServer) -> None:
    with (
        SSEServer([send(1), silence()]) as upstream,
        process(server.url, upstream.url, "read") as elsewhere,
        RedisLog.from_url(server.url, lease=LEASE, abandon_after=0.3) as log,
        server.client() as client,
    ):
        with log.open("k", lambda: request_sse(upstream.url)) as events:
            assert [next(events), *lines(elsewhere, 1)] == [1, "1"]
        with pytest.raises(TimeoutError):
            upstream.requests[0].wait_aborted(1)
        elsewhere.kill()
        elsewhere.wait(30)
        # As if its last heartbeat had expired.
        client.delete("sseqbridge:{k}:readers")
        upstream.requests[0].wait_aborted(30)
        assert log.open("k").collect() == [1]


def test_forked_child_opens_its_own_readers(server: RedisServer) -> None:
    with SSEServer([send(1), silence()]) as upstream, RedisLog.from_url(server.url) as log:
        stream = log.open("k", lambda: request_sse(upstream.url))
        assert next(stream) == 1
        child = os.fork()
        if not child:
            code = 1
            try:
                with pytest.raises(UsageError, match="fork"):
                    next(stream)
                with log.open("k") as own:
                    assert next(own) == 1
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        log.cancel("k")
        assert stream.collect() == []


@pytest.mark.gevent
def test_redis_log_works_under_gevent(server: RedisServer) -> None:
    program = """
        from gevent import monkey; monkey.patch_all()
        import sys, gevent
        from sseqbridge import request_sse
        from sseqbridge.resume import RedisLog
        with RedisLog.from_url(sys.argv[1]) as log:
            start = lambda: request_sse(sys.argv[2])
            jobs = [gevent.spawn(lambda n=n: log.open(f"k{n % 5}", start).collect()) for n in range(50)]
            print([job.get() for job in jobs] == [[1, 2]] * 50)
    """
    with SSEServer([send(1), wait(0.05), send(2), DONE]) as upstream:
        command = [sys.executable, "-c", textwrap.dedent(program), server.url, upstream.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=ROOT, check=False)
        assert (done.stdout, done.stderr) == ("True\n", "")
        assert len(upstream.requests) == 5


def test_relay_of_a_log_resumes_after_the_last_event_id(server: RedisServer) -> None:
    import flask

    app = flask.Flask(__name__)
    with SSEServer([send(1), send(2), send(3), DONE]) as upstream, RedisLog.from_url(server.url) as log:

        @app.get("/<key>")
        def read(key: str) -> flask.Response:
            events = log.open(
                key,
                lambda: request_sse(upstream.url),
                last_event_id=flask.request.headers.get("Last-Event-ID"),
            )
            return relay.flask.stream_response(events)

        client = app.test_client()
        frames = client.get("/k").text.split("\n\n")
        ids = [re.findall("id: (.*)", frame)[0] for frame in frames if "data:" in frame]
        assert [frame.split("data: ")[1] for frame in frames if "data:" in frame] == ["1", "2", "3", "[DONE]"]
        rest = client.get("/k", headers={"Last-Event-ID": ids[1]}).text
        assert re.findall("data: (.*)", rest) == ["3", "[DONE]"]
        assert re.findall("id: (.*)", rest) == ids[2:]


@pytest.mark.timeout(600)
def test_randomly_killed_producers_lose_and_repeat_nothing() -> None:
    tally = resume_kills.run(12, 7, at_once=4)
    assert (tally.kills, tally.ends["done"]) == (12, 24)
    assert tally.events > 0
