"""Authentication of connections: an auth of the client's makes its requests one after another, in one thread."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

import pytest

from sseqbridge.testing import ReceivedRequest, SSEServer, Step, raw, respond
from tests.support import in_thread

# httpx's transport, which serves proxies here, cannot keep a connection for one handshake.
pytestmark = pytest.mark.own_transport


def script(request: ReceivedRequest) -> list[Step]:
    """Return the response of a server that asks for NTLM, and its connection's number."""
    if request.headers.get("authorization") == "NTLM three":
        return [respond(content_type="text/plain", framing="length"), raw(b"hello")]
    return [respond(401, {"WWW-Authenticate": "NTLM two"}, content_type=None, framing="length")]


def handshake(package: Any, before_the_last: Any = None) -> Any:
    """Return an auth that does NTLM's three requests, and calls a function before the last one."""

    class Handshake(package.Auth):  # type: ignore[misc]
        def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            response = yield request
            for message in ("one", "three"):
                assert response.status_code == 401
                if message == "three" and before_the_last is not None:
                    before_the_last()
                request.headers["Authorization"] = f"NTLM {message}"
                response = yield request

    return Handshake()


def test_handshake_stays_on_its_connection(package: Any, client: Any) -> None:
    with SSEServer(script) as server:
        for number in (1, 2):
            assert client.get(server.url, auth=handshake(package)).text == "hello"
            assert len(server.requests) == 3 * number
            # An authenticated connection serves no other request.
            assert server.connections == number


def test_handshakes_of_two_threads_have_a_connection_each(package: Any, client: Any) -> None:
    both = threading.Barrier(2, timeout=30)
    with SSEServer(script) as server:
        asking = [in_thread(lambda: client.get(server.url, auth=handshake(package, both.wait))) for _ in range(2)]
        assert [future.result(30).text for future in asking] == ["hello", "hello"]
        assert server.connections == 2


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer other"}])
def test_another_request_does_not_get_into_a_handshake(
    package: Any, client: Any, headers: dict[str, str]
) -> None:
    """It could get the identity of the connection."""
    with SSEServer(script) as server:

        def ask_in_between() -> None:
            assert client.get(server.url, headers=headers).status_code == 401
            assert server.connections == 2

        assert client.get(server.url, auth=handshake(package, ask_in_between)).text == "hello"
        assert server.connections == 2


def test_clients_of_two_transports_share_no_handshake(package: Any, new_client: Any) -> None:
    first, second = new_client(), new_client()
    with SSEServer(script) as server:

        def ask_in_between() -> None:
            assert second.get(server.url, headers={"Authorization": "NTLM one"}).status_code == 401
            assert server.connections == 2

        assert first.get(server.url, auth=handshake(package, ask_in_between)).text == "hello"
        assert server.connections == 2
