"""Responses that are not valid HTTP: the error says what is wrong with them, and quotes nothing of them."""

from __future__ import annotations

import httpx
import pytest

from sseqbridge import Bridge, ProtocolError, RedirectError, request_sse
from sseqbridge.testing import SSEServer, cut, in_turn, respond, send, wire
from tests.requesters import Requester
from tests.support import until_no_stream_is_open

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = STREAM + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.own_transport
@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"SSH-2.0-\x1b[31m\r\n\r\n", "the first line must be a status line"),
        (STREAM + b"Transfer-Encoding: \x1b[31m\r\n\r\n", "Transfer-Encoding must be chunked"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "the server switched protocols, and the request did not ask for it",
        ),
        (CHUNKED + b"\x1b[31m\r\n", "a chunk must begin with its size in hexadecimal"),
    ],
    ids=range(4),
)
@pytest.mark.parametrize("is_reused", [False, True])
def test_response_that_is_not_http_has_a_reason(ask: Requester, sent: bytes, reason: str, is_reused: bool) -> None:
    faulty = [wire(sent), cut()]
    with SSEServer(in_turn([send(1)], faulty) if is_reused else faulty) as server:
        if is_reused:
            with ask(server.url) as response:
                assert response.items() == [1]
            ask.run_blocking(until_no_stream_is_open)
        with pytest.raises(ProtocolError) as caught, ask(server.url) as response:
            response.items()
        assert str(caught.value) == f"{server.url}/: the response is not valid HTTP: {reason}"
        assert server.connections == 1


def test_text_of_httpxs_transport_is_not_quoted() -> None:
    """It may quote the response."""
    faulty = [wire(STREAM + b"a \x1b[31m: b\r\n\r\n"), cut()]
    with SSEServer(faulty) as server, Bridge(client=httpx.AsyncClient) as bridge:
        with pytest.raises(ProtocolError) as caught:
            request_sse(server.url, bridge=bridge)
        assert str(caught.value) == f"{server.url}/: the response is not valid HTTP"


def test_location_with_an_invalid_host_is_an_error(ask: Requester) -> None:
    """httpx reads such a URL, and fails when the host is used."""
    location = {"Location": "http://xn--b.test/"}
    with SSEServer([respond(302, location, content_type=None)]) as server:
        with pytest.raises(RedirectError, match="302 without a usable Location"):
            ask(server.url)
        with Bridge(client=httpx.AsyncClient) as bridge, pytest.raises(ProtocolError, match="without a usable"):
            request_sse(server.url, bridge=bridge)
