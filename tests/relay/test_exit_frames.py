"""Relays whose upstreams end with the bridge, or with the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sseqbridge import Bridge, BridgeClosedError, EventStreamParser, ServerSentEvent, request_sse
from sseqbridge.relay import RelayEnd
from sseqbridge.testing import SSEServer, send, silence
from tests.relay.support import Relay


def request(url: str, bridge: Bridge) -> Any:
    return request_sse(url, bridge=bridge)


def iterable(url: str, bridge: Bridge) -> Iterator[Any]:
    yield from request_sse(url, bridge=bridge).events


@pytest.mark.parametrize("exits", [True, False], ids=["exit", "close"])
@pytest.mark.parametrize("source", [request, iterable])
def test_client_gets_the_error_of_the_shutdown(
    relayed: Relay, source: Callable[[str, Bridge], Any], exits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[RelayEnd] = []
    with SSEServer([send({"n": 1}), silence()]) as server, Bridge() as bridge:
        reading = relayed(source(server.url, bridge), on_end=ends.append)
        assert reading.next_event() in (b'data: {"n": 1}\n\n', b'data: {"n":1}\n\n')
        monkeypatch.setattr("sseqbridge._engine.bridge._exiting", exits)
        bridge.close()
        [event] = EventStreamParser().feed(reading.rest())
        server.requests[0].wait_aborted()
    assert isinstance(event, ServerSentEvent)
    assert (event.event, event.json()["error"]["type"]) == ("shutdown", "ServerShutdown")
    [end] = ends
    assert end.outcome == "error"
    assert isinstance(end.error, BridgeClosedError)


def test_function_error_reports_the_bridges_end_in_its_own_form(relayed: Relay) -> None:
    with SSEServer([send(1), silence()]) as server, Bridge() as bridge:
        reading = relayed(request(server.url, bridge), error=lambda error: {"failed": type(error).__name__})
        assert reading.next_event() == b"data: 1\n\n"
        bridge.close()
        assert reading.rest() == b'event: error\ndata: {"failed":"BridgeClosedError"}\n\n'
