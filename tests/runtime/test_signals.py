"""Signals while a consumer waits, in interpreters of their own, whose main thread is the consumer."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from sseqbridge import request_sse
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, send, silence
from tests.support import (
    EXITS,
    in_thread,
    python,
    started,
    until_blocked,
)

from .programs import PRELUDE, read_line

pytestmark = [pytest.mark.configurations("default", "plain"), pytest.mark.slow]

RESPONSE = (send({"n": 1}), send("[DONE]"))


unix = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix signals")


@unix
@pytest.mark.parametrize("wait_for_it", ["for item in it: pass", "next(it)", "it.next(timeout=60)"])
def test_ctrl_c_during_a_wait_aborts_the_stream(silent: SSEServer, wait_for_it: str) -> None:
    program = f"""{PRELUDE}
it = request_sse(url).events
next(it)
signal_when_waiting(signal.SIGINT)
try:
    {wait_for_it}
except KeyboardInterrupt:
    print("interrupted", it.outcome, flush=True)
    sys.stdin.read()
"""
    with started(program, silent.url) as process:
        assert read_line(process) == "interrupted closed"
        silent.wait_for_request().wait_aborted()
        assert process.poll() is None
        assert process.communicate(timeout=EXITS) == ("", "")
        assert process.returncode == 0


@unix
@pytest.mark.parametrize("error", [KeyboardInterrupt, LookupError])
def test_exception_of_a_signal_handler_aborts_the_stream(silent: SSEServer, error: type[BaseException]) -> None:
    def interrupt(*_: object) -> None:
        raise error

    def send_signal() -> None:
        until_blocked(main)
        signal.pthread_kill(main, signal.SIGUSR1)

    main = threading.get_ident()
    it = request_sse(silent.url).events
    assert next(it) == {"n": 1}
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        sending = in_thread(send_signal)
        with pytest.raises(error):
            next(it)
        sending.result(30)
    finally:
        signal.signal(signal.SIGUSR1, before)
    silent.wait_for_request().wait_aborted()
    assert list(it) == []


@unix
def test_ctrl_c_before_the_headers_aborts_the_request() -> None:
    program = f"""{PRELUDE}
request_sse(sys.argv[2]).events.close()  # Starts the thread, so that the next wait is for the headers.
signal_when_waiting(signal.SIGINT)
try:
    request_sse(url)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.read()
"""
    with (
        SSEServer([silence()]) as server,
        SSEServer(RESPONSE) as other,
        started(program, server.url, other.url) as child,
    ):
        assert read_line(child) == "interrupted"
        for request in server.requests:
            request.wait_aborted()
        assert child.poll() is None
        assert child.communicate(timeout=EXITS) == ("", "")


@unix
@pytest.mark.parametrize("consume", ["for item in it: pass", "next(it, None)"])
def test_close_in_a_signal_handler_ends_the_interrupted_wait(silent: SSEServer, consume: str) -> None:
    program = f"""{PRELUDE}
it = request_sse(url).events
next(it)
signal.signal(signal.SIGUSR1, lambda *_: it.close())
signal_when_waiting(signal.SIGUSR1)
{consume}
print("ended", it.outcome, flush=True)
sys.stdin.read()
"""
    with started(program, silent.url) as process:
        assert read_line(process) == "ended closed"
        silent.wait_for_request().wait_aborted()
        assert process.communicate(timeout=EXITS) == ("", "")


@unix
def test_close_in_a_signal_handler_is_safe_at_any_moment() -> None:
    # Every 0.2 ms: in receive(), in wake-ups of send(), while decoding, and in the handler's own close().
    def numbers(request: ReceivedRequest) -> Iterator[Step]:
        n = 0
        while True:
            yield send(n)
            n += 1

    program = f"""{PRELUDE}
streams = []
signal.signal(signal.SIGALRM, lambda *_: streams and streams[-1].close())
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
for _ in range(10):
    try:
        streams.append(request_sse(url, max_buffered_bytes=4000).events)
        seen = list(streams[-1])
        assert seen == list(range(len(seen))), seen
    finally:
        del streams[:]
signal.setitimer(signal.ITIMER_REAL, 0)
print("ended", flush=True)
"""
    with SSEServer(numbers) as server:
        status, out, err = python(program, server.url, timeout=50)
        assert (status, out, err) == (0, "ended\n", "")
        assert len(server.requests) == 10
