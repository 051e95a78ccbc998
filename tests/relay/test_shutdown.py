"""Web servers that end their relays when they receive a signal to stop, by the hooks of the guide."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest

from sseqbridge.testing import SSEServer, send, silence
from tests.servers import Server, reading

pytestmark = pytest.mark.server

SERVERS = ["gunicorn gthread, ending", "uvicorn, ending", "hypercorn, ending", "django uvicorn, ending"]


@pytest.mark.parametrize("name", SERVERS)
def test_server_ends_its_relays_and_stops(name: str) -> None:
    server = Server(name)
    try:
        server.wait_until_ready()
        with SSEServer([send({"n": 1}), silence()]) as upstream:
            query = urlencode({"upstream": upstream.url, "heartbeat": "never"})
            with reading(f"{server.url}/relay?{query}") as reader:
                assert reader.event().json() == {"n": 1}
                # No server waits for its graceful timeout.
                server.terminate()
                [event] = reader.events()
                assert (event.event, event.retry) == ("shutdown", 5)
            upstream.assert_aborted()
    finally:
        server.close()
