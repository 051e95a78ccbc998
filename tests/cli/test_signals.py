"""Signals: the exit status, and that none interrupts what must not be interrupted."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import struct
import sys
import termios
from collections.abc import Callable

import pytest

from sseqbridge.__main__ import run
from sseqbridge._cli import main as main_module
from sseqbridge._cli.signals import DeferredSignals, Interrupted, ending_signals_raised, exit_status
from sseqbridge.testing import SSEServer, send, silence
from tests.support import in_thread, until

from .support import command

pytestmark = pytest.mark.slow

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.parametrize("number", NUMBERS[1:])
def test_signal_aborts_the_upstream(number: signal.Signals) -> None:
    with SSEServer([send(1), silence()]) as server, command(server.url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        process.send_signal(number)
        server.requests[0].wait_aborted(60)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == STATUS[number]


@pytest.mark.parametrize("number", NUMBERS)
def test_signal_ends_a_command_whose_output_is_not_read(number: signal.Signals) -> None:
    with SSEServer([send("x" * 1000) for _ in range(1000)]) as server, command(server.url) as process:
        assert process.stdout is not None
        fd = process.stdout.fileno()
        size = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
        until(lambda: struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0] > size - 4096, 60)
        process.send_signal(number)
        assert process.wait(60) == STATUS[number]


def test_interrupt_of_output_into_no_file_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, whose output has no descriptor."""

    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            raise KeyboardInterrupt

        def reconfigure(self, **options: object) -> None: ...

    monkeypatch.setattr(sys, "stdout", Interrupting())
    with SSEServer([send(1), silence()]) as server:
        assert main_module.main([server.url]) == 130
        server.requests[0].wait_aborted()


def test_ignored_signal_stays_ignored() -> None:
    """As under nohup."""
    with SSEServer([send(1), silence()]) as server, command(server.url, shell="trap '' HUP; exec \"$@\"") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143


def test_serve_ends_at_sigterm(tmp_path: os.PathLike[str]) -> None:
    file = os.path.join(tmp_path, "file")
    with open(file, "w", encoding="utf-8") as recorded:
        recorded.write('{"time": 0, "data": "a"}\n')
    with command("serve", file, "--port", "0") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("sseqbridge: http://")
        process.terminate()
        assert process.wait(60) == 143


# The handlers alone.


@pytest.mark.parametrize("number", NUMBERS)
def test_ending_signals_raise_and_handlers_are_restored(number: signal.Signals) -> None:
    before = handlers()
    with pytest.raises(KeyboardInterrupt) as raised, ending_signals_raised():
        signal.raise_signal(number)
    assert exit_status(raised.value) == STATUS[number]
    assert isinstance(raised.value, Interrupted) == (number != signal.SIGINT)
    assert handlers() == before


@pytest.mark.parametrize("number", NUMBERS)
def test_held_signal_is_raised_at_the_end(number: signal.Signals) -> None:
    before = handlers()
    passed = []
    with pytest.raises(KeyboardInterrupt) as raised, DeferredSignals():
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        passed.append(number)
    assert exit_status(raised.value) == STATUS[number]
    assert passed == [number]
    assert handlers() == before


def test_held_signal_is_raised_where_it_may_be() -> None:
    entered = []
    with DeferredSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted), signals.raised():
            entered.append(True)
    assert not entered


def test_second_signal_does_not_interrupt_the_handling_of_the_first() -> None:
    handled = []
    with pytest.raises(Interrupted), DeferredSignals() as signals, signals.raised():
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            # As at the end of a terminal, whose shell sends another one.
            signal.raise_signal(signal.SIGHUP)
            handled.append(True)
    assert handled


def test_error_of_the_block_precedes_a_held_signal() -> None:
    with pytest.raises(ZeroDivisionError), DeferredSignals():
        signal.raise_signal(signal.SIGTERM)
        raise ZeroDivisionError


@pytest.mark.parametrize("guard", [ending_signals_raised, DeferredSignals])
def test_other_threads_install_no_handlers(guard: Callable[[], DeferredSignals]) -> None:
    before = handlers()

    def enter() -> None:
        with guard():
            assert handlers() == before

    in_thread(enter).result(30)


def test_signal_during_import_exits_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, status in ((KeyboardInterrupt(), 130), (Interrupted(signal.SIGTERM), 143)):

        def interrupted(error: BaseException = error) -> int:
            raise error

        monkeypatch.setattr(main_module, "main", interrupted)
        assert run() == status
