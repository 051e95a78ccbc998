"""pook and mocket, which replace parts of httpx or the sockets of the process: requests go through them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from sseqbridge import ConnectError
from sseqbridge._runtime import patching
from sseqbridge.testing import SSEServer, send
from tests.requesters import Requester

# mocket leaves the sockets that it wraps in TLS to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

DONE = send("[DONE]")
BODY = "data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
HEADERS = {"Content-Type": "text/event-stream"}

Mock = Callable[..., AbstractContextManager[Any]]


@contextmanager
def by_pook(method: str, url: str, status: int, headers: dict[str, str], body: str) -> Iterator[None]:
    import pook

    with pook.use():
        pook.mock(url, method=method, reply=status, response_headers=headers, response_body=body)
        yield


@contextmanager
def by_mocket(method: str, url: str, status: int, headers: dict[str, str], body: str) -> Iterator[None]:
    from mocket import Mocketizer
    from mocket.mocks.mockhttp import Entry

    with Mocketizer():
        Entry.single_register(method, url, status=status, headers=headers, body=body)
        yield


@pytest.fixture(params=[by_pook, by_mocket], ids=["pook", "mocket"])
def mock(request: pytest.FixtureRequest) -> Mock:
    mock: Mock = request.param
    return mock


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_stream_of_a_mock_is_read(ask_fresh: Requester, mock: Mock, scheme: str) -> None:
    url = f"{scheme}://upstream.test/stream"
    with mock("GET", url, 200, HEADERS, BODY), ask_fresh(url) as response:
        assert (response.status, response.items()) == (200, [1, 2])
        assert response.headers["content-type"] == "text/event-stream"


def test_request_with_a_body_is_mocked(ask_fresh: Requester, mock: Mock) -> None:
    url = "http://upstream.test/stream"
    with mock("POST", url, 200, HEADERS, BODY), ask_fresh(url, {"X-One": "1"}, {"a": 1}) as response:
        assert response.items() == [1, 2]


def test_error_of_a_mock_is_a_response(ask_fresh: Requester, mock: Mock) -> None:
    url = "http://upstream.test/stream"
    body = json.dumps({"error": "busy"})
    with mock("GET", url, 503, {"Content-Type": "application/json"}, body), ask_fresh(url) as response:
        assert (response.status, response.items()) == (503, [{"error": "busy"}])


def test_stream_of_a_mock_can_be_left(ask_fresh: Requester, mock: Mock) -> None:
    url = "http://upstream.test/stream"
    with mock("GET", url, 200, HEADERS, BODY), ask_fresh(url) as response:
        assert response.next() == 1


def test_sockets_are_used_again_after_the_mock(ask_fresh: Requester, mock: Mock) -> None:
    url = "http://upstream.test/stream"
    with SSEServer([send(3), DONE]) as server:
        for _ in range(2):
            with mock("GET", url, 200, HEADERS, BODY), ask_fresh(url) as response:
                assert response.items() == [1, 2]
            assert not patching.is_socket_replaced()
            with ask_fresh(server.url) as response:
                assert response.items() == [3]


def test_failed_mock_is_a_typed_error(ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setattr(patching, "is_socket_replaced", lambda: True)
    with pytest.raises(ConnectError):
        ask_fresh(f"http://127.0.0.1:{closed_port}/")
