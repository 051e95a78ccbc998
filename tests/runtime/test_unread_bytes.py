"""Bytes that a lost connection has not delivered: read without a wait, and not needed to notice the loss."""

from __future__ import annotations

import errno
import os
import socket
import threading

import pytest

from sseqbridge import ReadError
from sseqbridge._runtime.sockets import unread_bytes
from sseqbridge.testing import SSEServer, hold, reset, send
from tests.requesters import Requester


@pytest.fixture
def no_descriptor_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("_socket.dup", fail)


def test_bytes_are_read_up_to_the_limit() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"a" * 100)
        assert unread_bytes(ours.fileno(), 60) == b"a" * 60
        assert unread_bytes(ours.fileno(), 60) == b"a" * 40


def test_read_never_waits() -> None:
    ours, theirs = socket.socketpair()
    # A socket that is made now would wait for so many seconds.
    socket.setdefaulttimeout(600)
    try:
        with ours, theirs:
            assert unread_bytes(ours.fileno(), 60) == b""
    finally:
        socket.setdefaulttimeout(None)


@pytest.mark.usefixtures("no_descriptor_is_free")
def test_nothing_is_read_if_no_descriptor_is_free() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"a")
        assert unread_bytes(ours.fileno(), 60) == b""


def test_reset_is_noticed_if_no_descriptor_is_free(ask: Requester, request: pytest.FixtureRequest) -> None:
    go = threading.Event()
    with SSEServer([send(1), hold(go), reset()]) as server, ask(server.url, timeout=None) as response:
        assert response.next() == 1
        request.getfixturevalue("no_descriptor_is_free")
        go.set()
        _, error = response.fail()
        assert isinstance(error, ReadError)
