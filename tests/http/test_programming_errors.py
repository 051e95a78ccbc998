"""Faults of a transport that are no faults of the network: they are reported once, and not retried."""

from __future__ import annotations

import httpx
import httpx2
import pytest

from sseqbridge import Bridge, CallbackError, ReconnectionPolicy, SSEError, TransportError, request_sse
from sseqbridge._http.errors import is_unsendable
from tests.requesters import Requester

pytestmark = pytest.mark.configurations("default")

FAULTS = [ImportError("h2"), AttributeError("x"), TypeError("x"), NotImplementedError(), KeyError("x")]


@pytest.mark.parametrize("fault", [*FAULTS, httpx.UnsupportedProtocol("x"), httpx.LocalProtocolError("x")])
def test_fault_of_the_transport_would_come_again(fault: Exception) -> None:
    assert is_unsendable(fault, httpx)


@pytest.mark.parametrize(
    "fault", [httpx.ConnectError("x"), httpx.ReadTimeout("x"), httpx.RemoteProtocolError("x"), OSError()]
)
def test_fault_of_the_network_may_pass(fault: Exception) -> None:
    assert not is_unsendable(fault, httpx)


def test_packages_are_not_confused() -> None:
    assert is_unsendable(httpx2.UnsupportedProtocol("x"), httpx2)
    assert not is_unsendable(httpx2.ConnectError("x"), httpx2)


@pytest.mark.parametrize("fault", [*FAULTS, httpx.UnsupportedProtocol("x")])
def test_fault_of_a_callers_transport_is_not_retried(fault: Exception) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        raise fault

    requests: list[httpx.Request] = []
    with Bridge(client=lambda: httpx.AsyncClient(transport=httpx.MockTransport(handler))) as bridge:
        with pytest.raises(SSEError) as caught:
            request_sse("http://mock.test/", bridge=bridge, reconnect=ReconnectionPolicy(delay=0.01))
        assert type(caught.value) is (TransportError if isinstance(fault, httpx.HTTPError) else CallbackError)
        assert caught.value.__cause__ is fault
    assert len(requests) == 1


def test_fault_of_a_replaced_transport_is_not_retried(ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(transport: object, request: httpx.Request) -> httpx.Response:
        requests.append(request)
        raise ImportError("socksio")

    requests: list[httpx.Request] = []
    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
    with pytest.raises(TransportError) as caught:
        ask_fresh("http://mock.test/", reconnect=ReconnectionPolicy(delay=0.01))
    assert isinstance(caught.value.__cause__, ImportError)
    assert len(requests) == 1
