"""An interrupt at any bytecode of a request on a BridgeTransport leaves no request running."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from sseqbridge import Bridge, BridgeTransport
from sseqbridge.testing import SSEServer, send, silence
from tests.interrupts import ALL, MARKS, interruptions
from tests.support import until

pytestmark = MARKS


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    with Bridge() as bridge:
        bridge.started()
        yield bridge


@pytest.mark.parametrize("has_upload", [False, True])
def test_interrupt_at_any_bytecode_of_a_request(package: Any, bridge: Bridge, has_upload: bool) -> None:
    transport = BridgeTransport(bridge=bridge)
    content = (lambda: iter([b"a", b"b"])) if has_upload else (lambda: None)
    with (
        SSEServer([*map(send, ALL), silence()]) as server,
        package.Client(transport=transport, timeout=None) as client,
    ):

        opened: list[Any] = []

        def ask(_: object) -> None:
            opened.append(client.send(client.build_request("POST", server.url, content=content()), stream=True))

        for _ in interruptions(lambda: None, ask, close=lambda _: opened.pop().close(), least=100):
            assert not opened
            until(lambda: not bridge.stats().open_streams)
            until(lambda: "requests=0" in repr(transport))


@pytest.mark.parametrize("ends", [False, True])
def test_interrupt_at_any_bytecode_of_reading(package: Any, bridge: Bridge, ends: bool) -> None:
    """The body has no gap, and is not taken for a whole one."""
    steps = [send("x" * 100), send("y" * 100), *([] if ends else [silence()])]
    whole = b"data: " + b"x" * 100 + b"\n\ndata: " + b"y" * 100 + b"\n\n"
    with (
        SSEServer(steps) as server,
        package.Client(transport=BridgeTransport(bridge=bridge), timeout=None) as client,
    ):

        def make() -> tuple[Any, list[bytes]]:
            return client.send(client.build_request("GET", server.url), stream=True), []

        def read(made: tuple[Any, list[bytes]]) -> None:
            response, got = made
            for data in response.iter_raw():
                got.append(data)
                if not ends and b"".join(got) == whole:
                    break
            response.close()

        for (response, got), _ in interruptions(make, read, least=20):
            with contextlib.suppress(package.StreamError, package.TransportError):
                got.extend(response.iter_raw())
                assert b"".join(got) == whole
            assert whole.startswith(b"".join(got))
            response.close()
            until(lambda: not bridge.stats().open_streams)
