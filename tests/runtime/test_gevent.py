"""Processes that gevent has patched, before or after the library was imported."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from sseqbridge import Bridge, UsageError, request_sse
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, hold, send, silence, wait
from tests.support import IS_DEFAULT, measured_environment, python

PRELUDE = """
import _thread, asyncio, sys, threading
url, order = sys.argv[1:]
trace, start_new_thread = threading.gettrace(), _thread.start_new_thread

def start_traced(function, args):
    def run(*args):
        sys.settrace(trace)
        function(*args)

    return start_new_thread(run, args)

if trace is not None:
    # Coverage traces only threads of the module `threading`. The library starts its threads by `_thread`.
    _thread.start_new_thread = start_traced
if order == "imported first":
    from sseqbridge import relay, request_sse
from gevent import monkey
monkey.patch_all()
import gevent
from gevent.event import Event
from sseqbridge import relay, request_sse
"""

# gevent replaces the sockets of asyncio's loop, not those of uvloop's.
pytestmark = [pytest.mark.gevent, pytest.mark.configurations("default", "plain")]

both_orders = pytest.mark.parametrize("order", ["imported first", "patched first"] if IS_DEFAULT else ["patched first"])


def script(request: ReceivedRequest) -> list[Step]:
    if "silent" in request.path:
        return [send(0), silence()]
    return [step for n in range(10) for step in (send(n), wait(0.02))]


def run(program: str, url: str, order: str) -> str:
    # Coverage takes more time than the program, and sees the same lines in both orders.
    env = measured_environment("tests/runtime/gevent.coveragerc") if order == "imported first" else None
    status, out, err = python(PRELUDE + program, url, order, env=env)
    assert (status, err) == (0, "")
    return out


@both_orders
def test_two_hundred_streams_in_one_thread_leave_it_free(order: str) -> None:
    program = """
async def in_a_loop():
    return asyncio.get_running_loop()

def read(n):
    items = list(request_sse(url).events)
    assert items == list(range(10)), items
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return 1

def tick():
    while True:
        gevent.sleep(0.001)
        ticks.append(1)

ticks = []
readers = [gevent.spawn(read, n) for n in range(200)]
ticking = gevent.spawn(tick)
while len(ticks) < 20:
    gevent.sleep(0.001)
# The request that releases all readers.
list(request_sse(url + "/go").events)
gevent.joinall(readers)
print(sum(reader.value for reader in readers))
"""

    def held(request: ReceivedRequest) -> Iterator[Step]:
        if request.path == "/go":
            go.set()
        else:
            yield from (send(0), hold(go), *(send(n) for n in range(1, 10)))
        yield send("[DONE]")

    go = threading.Event()
    with SSEServer(held) as server:
        assert run(program, server.url, order) == "200\n"
        assert len(server.requests) == 201


@both_orders
@pytest.mark.parametrize("how", ["gevent.Timeout", "kill", "close from another", "close in the hub"])
def test_killed_greenlet_aborts_the_upstream(order: str, how: str) -> None:
    program = f"""
it = request_sse(url + "/silent").events
read = Event()

def reader():
    limit = gevent.Timeout(0.01 if {how!r} == "gevent.Timeout" else None)
    try:
        for item in it:
            limit.start()
            read.set()
    except gevent.Timeout:
        pass

reading = gevent.spawn(reader)
read.wait()
if {how!r} == "kill":
    reading.kill()
elif {how!r} == "close from another":
    it.close()
elif {how!r} == "close in the hub":
    gevent.get_hub().loop.run_callback(it.close)
reading.join()
print(it.outcome)
# The upstream is aborted before the program ends.
list(request_sse(url + "/aborted").events)
"""

    def until_aborted(request: ReceivedRequest) -> list[Step]:
        return [hold(server.requests[0].aborted)] if request.path == "/aborted" else script(request)

    with SSEServer(until_aborted) as server:
        assert "closed" in run(program, server.url, order)


@both_orders
def test_names_are_looked_up(order: str) -> None:
    program = """
print([list(request_sse(url.replace("127.0.0.1", "localhost")).events) == list(range(10)) for _ in range(3)])
"""
    with SSEServer(script) as server:
        assert run(program, server.url, order) == "[True, True, True]\n"


@both_orders
def test_iterable_is_relayed_from_a_greenlet(order: str) -> None:
    program = """
def work():
    for n in range(3):
        gevent.sleep(0.02)
        yield {"n": n}

print(b"".join(relay.frames(work(), heartbeat=0.01)).replace(b":\\n", b"").count(b"data: "))
"""
    with SSEServer(script) as server:
        assert run(program, server.url, order) == "3\n"


@both_orders
def test_iterable_is_written_to_a_log_by_a_greenlet(order: str) -> None:
    program = """
from sseqbridge.resume import MemoryLog

def work():
    for n in range(3):
        gevent.sleep(0.02)
        yield {"n": n, "thread": gevent.get_hub() is hub}

hub = gevent.get_hub()
log = MemoryLog()
print(log.produce("produced", work), [item["n"] for item in log.open("produced")])
print([item for item in log.open("opened", work)] == [{"n": n, "thread": True} for n in range(3)])

def silent():
    for item in request_sse(url + "/silent").events:
        yield {"item": item}

events = log.open("cancelled", silent)
print(next(events)["item"], log.cancel("cancelled"), list(events))
"""
    with SSEServer(script) as server:
        assert run(program, server.url, order) == "eof [0, 1, 2]\nTrue\n0 True []\n"
        server.requests[0].wait_aborted()


@both_orders
def test_exit_with_an_open_stream_aborts_it(order: str) -> None:
    program = """
it = request_sse(url + "/silent").events
print(next(it), flush=True)
"""
    with SSEServer(script) as server:
        assert run(program, server.url, order) == "0\n"
        server.requests[0].wait_aborted()


@both_orders
@pytest.mark.parametrize("client", ["None", "httpx.AsyncClient", "httpx2.AsyncClient"])
def test_logging_on_the_loop_thread_blocks_no_greenlet(order: str, client: str) -> None:
    program = f"""
import httpx, httpx2, logging
from sseqbridge import Bridge

class Yielding(logging.Handler):
    def emit(self, record):
        gevent.sleep(0.001)

logging.basicConfig(level=logging.DEBUG, handlers=[Yielding(), logging.StreamHandler(open(os.devnull, "w"))])
bridge = Bridge(client={client})
# One greenlet holds the handlers' locks while the first request starts the thread.
holding = gevent.spawn(logging.info, "first")
gevent.sleep(0)

def read():
    logging.info("before")
    items = list(request_sse(url, bridge=bridge).events)
    logging.info("after")
    assert items == list(range(10)), items

readers = [gevent.spawn(read) for _ in range(50)]
gevent.joinall(readers, timeout=90, raise_error=True)
print(sum(reader.successful() for reader in readers))
"""
    with SSEServer(script) as server:
        assert run("import os\n" + program, server.url, order) == "50\n"


@both_orders
def test_wake_from_another_thread_keeps_the_hubs_reference_count(order: str) -> None:
    """The hub changes the count without the GIL; a lost update would end the hub."""
    program = """
import select, time
from gevent.monkey import get_original
from sseqbridge._runtime import threads

start, look = get_original("_thread", "start_new_thread"), get_original("select", "select")
waiter, over = threads.new_waiter(), []

def wake():
    while not over:
        waiter.wake()
        look([], [], [], 0)

def sleep():
    while time.monotonic() < end:
        gevent.sleep(0.0001)

end = time.monotonic() + 3
start(wake, ())
try:
    gevent.joinall([gevent.spawn(sleep) for _ in range(5)], raise_error=True)
finally:
    over.append(True)
# Until the hub has run the last wake-up of the other thread.
while gevent.get_hub().loop.activecnt and time.monotonic() < end + 30:
    gevent.sleep(0.001)
print(gevent.get_hub().loop.activecnt)
"""
    assert run(program, "", order) == "0\n"


@both_orders
def test_gevent_wait_returns_despite_an_open_stream(order: str) -> None:
    program = """
it = request_sse(url + "/silent").events
print(next(it), gevent.wait(timeout=30), flush=True)
"""
    with SSEServer(script) as server:
        assert run(program, server.url, order) == "0 True\n"


@both_orders
def test_merged_functions_run_in_greenlets(order: str) -> None:
    program = """
import threading
from sseqbridge import SSEClient, merge

def slow():
    with lock:
        return client.request("/slow")

lock = threading.Lock()
client = SSEClient(url, headers=lambda: {"X-A": "1"})
with lock:
    merged = iter(merge({"slow": slow, "quick": client.call("/quick")}))
    print(*next(merged))
print(sum(1 for _ in merged), client.call("/")().status)
"""
    with SSEServer([*(send(n) for n in range(10)), send("[DONE]")]) as server:
        assert run(program, server.url, order) == "quick 0\n19 200\n"


def test_eventlet_is_detected_by_its_patcher(monkeypatch: pytest.MonkeyPatch) -> None:
    class Patcher:
        @staticmethod
        def is_monkey_patched(module: str) -> bool:
            return module == "thread"

    monkeypatch.setitem(sys.modules, "eventlet.patcher", Patcher)
    with Bridge() as bridge, pytest.raises(UsageError, match="gunicorn -k gevent"):
        request_sse("http://localhost", bridge=bridge)


@pytest.mark.parametrize("order", ["imported first", "patched first"])
def test_eventlet_is_refused(order: str) -> None:
    program = """
import os, sys, warnings
warnings.simplefilter("ignore")  # eventlet itself is deprecated.
os.environ["EVENTLET_NO_GREENDNS"] = "yes"
url, order = sys.argv[1:]
if order == "imported first":
    from sseqbridge import request_sse
import eventlet
eventlet.monkey_patch()
from sseqbridge import UsageError, request_sse
try:
    request_sse(url)
except UsageError as error:
    print(error)
"""
    with SSEServer(script) as server:
        status, out, err = python(program, server.url, order)
        assert (status, err) == (0, "")
        assert "eventlet has patched this process" in out
        assert "gunicorn -k gevent" in out
        assert not server.requests


@both_orders
def test_greenlets_reading_at_exit_get_errors_and_print_nothing(order: str) -> None:
    program = """
import threading
from sseqbridge import BridgeClosedError

waiting = []
def read():
    try:
        for _ in request_sse(url + "/silent").events:
            waiting.append(1)
    except BridgeClosedError:
        print("error", flush=True)
        raise
    print("complete", flush=True)

greenlets = [gevent.spawn(read), gevent.spawn(read)]
threading.Thread(target=read, daemon=True).start()
while len(waiting) < 3:
    gevent.sleep(0.001)
"""
    with SSEServer(script) as server:
        assert run(program, server.url, order) == "error\n" * 3


@both_orders
def test_record_of_a_greenlet_is_handled_at_once_by_itself(order: str) -> None:
    program = """
import logging
from sseqbridge import Bridge

class Handler(logging.Handler):
    def emit(self, record):
        print(record.getMessage(), gevent.getcurrent() is greenlet)

greenlet = gevent.getcurrent()
logger = logging.getLogger("httpx")
logger.addHandler(Handler(logging.WARNING))
for _ in range(2):
    # Each starts a thread, and so makes sure that its records are forwarded.
    with Bridge() as bridge:
        list(request_sse(url, bridge=bridge).events)
    logger.warning("once")
"""
    with SSEServer(script) as server:
        assert run(program, server.url, order) == "once True\nonce True\n"


@both_orders
def test_wake_after_the_end_of_a_hub_does_nothing(order: str) -> None:
    program = """
from sseqbridge._runtime import threads

def wait_in_a_thread():
    waiter, hub = threads.new_waiter(), gevent.get_hub()
    hub.destroy(destroy_loop=True)
    return waiter

waiter = gevent.get_hub().threadpool.apply(wait_in_a_thread)
waiter.wake()
print("woken")
"""
    assert run(program, "", order) == "woken\n"
