"""SDKs' streams relayed by Flask and Django: a reader who leaves in silence aborts the upstream.

The applications are those of examples/sdk_chat.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from examples.sdk_chat.providers import WholeAnswer
from sseqbridge import BridgeTransport, relay
from sseqbridge.testing import SSEServer, hold, raw, respond, silence
from tests.sdk.answers import chat_steps, message_steps
from tests.sdk.clients import SDK, SDKS
from tests.servers import Reader, Servers, reading
from tests.support import in_thread, is_waiting, until

SERVERS = ["sdk flask run", "sdk gunicorn gthread", "sdk gunicorn gevent", "sdk django gunicorn", "sdk django uvicorn"]
STEPS = {"openai": chat_steps, "anthropic": message_steps}

on_servers = pytest.mark.server
every_server = pytest.mark.parametrize("server", SERVERS)
every_provider = pytest.mark.parametrize("provider", STEPS)


@pytest.fixture(scope="module")
def upstream() -> Iterator[SSEServer]:
    """The upstream of all servers."""
    with SSEServer() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def servers(upstream: SSEServer) -> Iterator[Servers]:
    with pytest.MonkeyPatch.context() as patch, Servers() as servers:
        for name in ("OPENAI", "ANTHROPIC"):
            patch.setenv(f"{name}_API_KEY", "test")
            patch.setenv(f"{name}_BASE_URL", upstream.url)
        yield servers


def sdk_of(provider: str) -> SDK:
    return next(sdk for sdk in SDKS if sdk.name.startswith(provider))


def begin(provider: str) -> list[Any]:
    return sdk_of(provider).begin()


def address(servers: Servers, server: str, provider: str) -> str:
    return f"{servers[server].url}/{provider}?prompt=Hello"


@on_servers
@every_server
@every_provider
def test_an_answer_is_relayed(servers: Servers, server: str, upstream: SSEServer, provider: str) -> None:
    upstream.play(STEPS[provider]())
    with reading(address(servers, server, provider)) as reader:
        assert reader.status == 200
        assert [event.data for event in reader.events()] == ["Hello", ", ", "world", "[DONE]"]


@on_servers
@every_server
@every_provider
def test_an_answer_without_its_end_is_reported(
    servers: Servers, server: str, upstream: SSEServer, provider: str
) -> None:
    # As if a proxy had ended it.
    upstream.play(begin(provider))
    with reading(address(servers, server, provider)) as reader:
        events = list(reader.events())
    assert [event.data for event in events[:-1]] == ["Hello"]
    assert events[-1].event == "error"
    assert "TruncatedStreamError" in events[-1].data


@on_servers
@every_server
@every_provider
def test_leaving_a_silent_answer_aborts_it(servers: Servers, server: str, upstream: SSEServer, provider: str) -> None:
    count = len(upstream.requests)
    upstream.play([*begin(provider), silence()])
    reader = Reader(address(servers, server, provider))
    assert reader.status == 200, servers[server].log
    assert reader.event().data == "Hello"
    reader.leave()
    upstream.requests[count].wait_aborted()
    with reading(f"{servers[server].url}/plain") as other:
        assert other.status == 200
    assert len(upstream.requests) == count + 1
    assert "Traceback" not in servers[server].log
    assert "Cancelled" not in servers[server].log


@on_servers
@every_server
@every_provider
def test_leaving_before_the_head_aborts_and_repeats_nothing(
    servers: Servers, server: str, upstream: SSEServer, provider: str
) -> None:
    count = len(upstream.requests)
    upstream.play([silence()])
    reader = Reader(address(servers, server, provider))
    upstream.wait_for_request(count + 1)
    reader.leave()
    upstream.requests[count].wait_aborted()
    with reading(f"{servers[server].url}/plain") as other:
        assert other.status == 200
    assert len(upstream.requests) == count + 1
    assert "Traceback" not in servers[server].log


@on_servers
@every_server
@every_provider
def test_a_head_request_asks_nothing(servers: Servers, server: str, upstream: SSEServer, provider: str) -> None:
    count = len(upstream.requests)
    assert httpx.head(address(servers, server, provider), timeout=30).status_code == 200
    assert len(upstream.requests) == count


@on_servers
@every_server
@every_provider
def test_overload_of_the_upstream_keeps_its_status_and_delay(
    servers: Servers, server: str, upstream: SSEServer, provider: str
) -> None:
    # The SDKs send no request again after this header.
    overloaded = {"Retry-After": "7", "X-Should-Retry": "false", "Content-Type": "application/json"}
    upstream.play([respond(429, overloaded, json={"error": {"message": "slow down"}})])
    response = httpx.get(address(servers, server, provider), timeout=30)
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert "slow down" not in response.text


@on_servers
@every_server
def test_a_refusal_of_the_upstream_is_a_502(servers: Servers, server: str, upstream: SSEServer) -> None:
    upstream.play([respond(400, content_type="application/json"), raw(b'{"error": {"message": "no"}}')])
    with reading(address(servers, server, "openai")) as reader:
        assert reader.status == 502


@pytest.mark.parametrize("sdk", SDKS, ids=str)
def test_closing_a_relay_aborts_the_stream_and_logs_nothing(sdk: SDK, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.DEBUG),
        SSEServer([*sdk.begin(), silence()]) as server,
        sdk.client(server.url) as client,
    ):
        frames = relay.frames(sdk.open(client), map=lambda item: sdk.text(item) or None, heartbeat=None)
        while b"Hello" not in next(frames):
            pass
        frames.close()
        server.requests[0].wait_aborted()
        until(lambda: not any(thread.name == "sseqbridge-worker" for thread in threading.enumerate()))
        own = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
        assert [record.getMessage() for record in own if record.levelno > logging.DEBUG] == []


@every_provider
def test_closing_an_unread_relay_aborts_the_stream(provider: str) -> None:
    sdk = sdk_of(provider)
    with SSEServer([*sdk.begin(), silence()]) as server, sdk.client(server.url) as client:
        frames = relay.frames(WholeAnswer(sdk.open(client), bool))
        gc.disable()  # It would end openai's stream, a reference cycle.
        try:
            frames.close()
            server.requests[0].wait_aborted()
        finally:
            gc.enable()


def test_relayed_stream_is_aborted_although_the_view_opened_it() -> None:
    ready = threading.Event()
    with (
        SSEServer([*chat_steps()[:2], hold(ready), *chat_steps()[2:]]) as server,
        BridgeTransport() as transport,
        openai.OpenAI(
            base_url=server.url, api_key="test", http_client=openai.DefaultHttpxClient(transport=transport)
        ) as client,
    ):
        messages: Any = [{"role": "user", "content": "Hello"}]
        stream = client.chat.completions.create(model="test", messages=messages, stream=True)
        frames = relay.frames(stream, map=lambda chunk: chunk.choices[0].delta.content or None)
        taking = in_thread(lambda: b"".join(frames))
        until(lambda: is_waiting(taking))
        frames.close()
        server.requests[0].wait_aborted()
        taking.result(30)
