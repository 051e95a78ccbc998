"""Iterables whose other HTTP client, or SDK, has lost its upstream."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sseqbridge import Bridge, BridgeTransport, ConnectError
from sseqbridge.relay import RelayEnd
from sseqbridge.testing import SSEServer, cut, send, silence
from tests.relay.support import Relay, error_of

pytestmark = pytest.mark.configurations("default", "plain", "httpx_transport")


class SDKError(Exception):
    pass


def one_item_and(error: Exception) -> Iterator[Any]:
    yield {"n": 1}
    raise error


def reads(url: str, how: str, transport: Any = None) -> Iterator[Any]:
    try:
        with httpx.Client(transport=transport or BridgeTransport()) as client, client.stream("GET", url) as response:
            for _ in response.iter_bytes():
                yield {"n": 1}
    except httpx.HTTPError as error:
        if how == "caused":
            raise SDKError("key-1") from error
        if how == "in a handler":
            raise SDKError("key-1")  # noqa: B904 - as some SDKs do
        if how == "a mistake in a handler":
            raise KeyError("key-1")  # noqa: B904
        raise


@pytest.mark.parametrize("how", ["raised", "caused", "in a handler"])
def test_lost_upstream_is_a_warning_and_no_application_failure(
    relayed: Relay, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[RelayEnd] = []
    with SSEServer([send({"n": 1}), cut()]) as server:
        error = error_of(relayed(reads(server.url, how), on_end=ends.append).rest())
    assert error == {"type": "ReadError", "message": "the connection to the upstream broke"}
    [record] = caplog.records
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)
    assert record.getMessage().startswith("a relayed stream ended with ")
    [end] = ends
    assert end.outcome == "error"
    assert isinstance(end.error, httpx.TransportError if how == "raised" else SDKError)


def test_another_clients_limit_is_a_time_limit_for_the_browser(relayed: Relay) -> None:
    with SSEServer([send({"n": 1}), silence()]) as server:
        read = relayed(reads(server.url, "caused", BridgeTransport(idle=0.05))).rest()
    assert error_of(read) == {"type": "StreamTimeoutError", "message": "the upstream took too long"}


def test_upstream_that_cannot_be_reached_is_named_so(relayed: Relay, closed_port: int) -> None:
    error = error_of(relayed(reads(f"http://127.0.0.1:{closed_port}", "caused")).rest())
    assert error == {"type": "ConnectError", "message": "no connection to the upstream"}


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", None])
def test_mistake_of_the_application_stays_its_own(
    relayed: Relay, url: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that cannot be sent, and an error in the handler of a lost connection."""
    with SSEServer([send({"n": 1}), cut()]) as server:
        how = "raised" if url else "a mistake in a handler"
        error = error_of(relayed(reads(url or server.url, how, httpx.HTTPTransport())).rest())
    assert error["type"] == "ServerError"
    [record] = caplog.records
    assert (record.levelno, bool(record.exc_info)) == (logging.ERROR, True)


def test_client_on_a_closing_bridge_reports_the_shutdown(relayed: Relay) -> None:
    with SSEServer([send({"n": 1}), silence()]) as server, Bridge() as bridge:
        reading = relayed(reads(server.url, "caused", BridgeTransport(bridge=bridge)))
        reading.next_event()
        bridge.close()
        assert reading.rest().startswith(b"event: shutdown\n")


class SDKStatusError(SDKError):
    """As the SDKs of OpenAI and Anthropic raise it; that of Mistral calls the response `raw_response`."""

    def __init__(self, status: int, name: str = "response") -> None:
        super().__init__("Incorrect API key: key-1")
        setattr(self, name, httpx.Response(status, request=httpx.Request("POST", "http://upstream/")))
        self.body = {"error": {"message": "Incorrect API key: key-1"}}


class SDKPartsError(SDKError):
    """As Cohere's SDK raises it."""

    def __init__(self, status: int) -> None:
        super().__init__("key-1")
        self.status_code, self.body = status, {"message": "key-1"}
        self.headers: dict[str, str] = {}


class SDKEventError(SDKError):
    """As OpenAI's SDK raises it for an error event."""

    def __init__(self) -> None:
        super().__init__("overloaded")
        self.request, self.body = httpx.Request("POST", "http://upstream/"), {"message": "overloaded"}


def _raised_by_httpx(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://upstream/")
    return httpx.HTTPStatusError("key-1", request=request, response=httpx.Response(status, request=request))


REFUSALS = [SDKStatusError(401), SDKStatusError(429, "raw_response"), SDKPartsError(401), _raised_by_httpx(503)]


@pytest.mark.parametrize("error", REFUSALS)
@pytest.mark.parametrize("is_caused", [False, True])
def test_refusal_that_an_sdk_raises_is_a_refusal(
    relayed: Relay, error: Exception, is_caused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[RelayEnd] = []

    def items() -> Iterator[Any]:
        yield {"n": 1}
        if is_caused:
            raise SDKError("key-1") from error
        raise error

    sent = relayed(items(), on_end=ends.append).rest()
    assert error_of(sent) == {"type": "StatusError", "message": "the upstream refused the request"}
    assert b"key-1" not in sent
    [record] = caplog.records
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)
    assert [(end.outcome, type(end.error)) for end in ends] == [("error", SDKError if is_caused else type(error))]


@pytest.mark.parametrize("error", [SDKEventError(), SDKStatusError(200)])
def test_error_event_that_an_sdk_raises_is_the_upstreams(
    relayed: Relay, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    expected = {"type": "UpstreamError", "message": "the upstream reported an error"}
    assert error_of(relayed(one_item_and(error)).rest()) == expected
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


class OwnError(Exception):
    """An error of the application, such as a web framework's HTTPException."""

    status_code, headers = 404, {"X": "1"}

    @property
    def response(self) -> Any:
        raise RuntimeError("no response")


@pytest.mark.parametrize("error", [OwnError(), OwnError("x"), _raised_by_httpx(200)])
def test_error_of_the_application_with_a_status_stays_its_own(
    relayed: Relay, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    assert error_of(relayed(one_item_and(error)).rest())["type"] == "ServerError"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_error_of_this_package_may_be_the_cause(relayed: Relay) -> None:
    def items() -> Iterator[Any]:
        yield {"n": 1}
        raise SDKError("key-1") from ConnectError("no connection")

    error = error_of(relayed(items()).rest())
    assert error == {"type": "ConnectError", "message": "no connection to the upstream"}
