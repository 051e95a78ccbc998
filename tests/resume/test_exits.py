"""A log whose process, or bridge, ends takes no answer that is cut off by it for whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from sseqbridge import Bridge, BridgeClosedError, BridgeTransport, ProducerLostError, SSEError, request_sse
from sseqbridge.testing import SSEServer, send, silence
from tests.resume.support import Logs, core_of


class UpstreamFailedError(Exception):
    """As SDKs raise it."""


def handles(url: str, bridge: Bridge) -> Iterator[Any]:
    """Looks complete, whatever happens to its stream."""
    try:
        yield from request_sse(url, bridge=bridge).events
    except SSEError:
        yield "sorry"


def reads_with_a_client(url: str, bridge: Bridge) -> Iterator[Any]:
    transport = BridgeTransport(bridge=bridge)
    with httpx.Client(transport=transport) as client, client.stream("GET", url) as response:
        for _ in response.iter_bytes():
            yield {"n": 1}


def wraps_the_error(url: str, bridge: Bridge) -> Iterator[Any]:
    try:
        yield from reads_with_a_client(url, bridge)
    except httpx.HTTPError as error:
        raise UpstreamFailedError from error


def request(url: str, bridge: Bridge) -> Any:
    return request_sse(url, bridge=bridge)


@pytest.mark.parametrize("exits", [True, False], ids=["exit", "close"])
@pytest.mark.parametrize("start", [request, handles, reads_with_a_client, wraps_the_error])
def test_answer_cut_off_by_the_process_end_is_released(
    logs: Logs,
    start: Callable[[str, Bridge], Any],
    exits: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logs.new()
    with SSEServer([send({"n": 1}), silence()]) as upstream, Bridge() as bridge:
        core_of(log).bridge = bridge
        stream = log.open("k", lambda: start(upstream.url, bridge))
        assert next(stream) == {"n": 1}
        monkeypatch.setattr("sseqbridge._engine.bridge._exiting", exits)
        bridge.close()
        with pytest.raises(BridgeClosedError):
            stream.collect()
        upstream.requests[0].wait_aborted(30)
    monkeypatch.undo()
    # As another process reads it.
    core_of(log).bridge = None
    with pytest.raises(ProducerLostError):
        # Text: "sorry" may still have been written.
        log.open("k", decode="text").collect()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
