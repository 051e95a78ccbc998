"""Django: the functions of a relay use the database where the view does, so that TestCase and transactions work."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection
from django.test import TestCase, override_settings
from django.urls import path as route

from sseqbridge import arequest_sse, relay, request_sse
from sseqbridge.relay import RelayEnd
from sseqbridge.testing import SSEServer, send, silence
from tests.relay.serving import sending, under_uvicorn, under_werkzeug
from tests.relay.views_of_answers import Answer, create_table
from tests.support import until


class Seen:
    """The values that the functions of the view have recorded. Emptied by each test."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.threads: list[Any] = []


seen = Seen()


def opens(url: str) -> Any:
    """Ask for the newest answer of the database."""
    seen.threads.append(threading.current_thread())
    newest = Answer.objects.order_by("-id").first()
    seen.texts.append("" if newest is None else newest.text)
    return request_sse(url)


async def aopens(url: str) -> Any:
    newest = await Answer.objects.order_by("-id").afirst()
    seen.texts.append("" if newest is None else newest.text)
    return await arequest_sse(url)


def on_end(end: RelayEnd) -> None:
    seen.threads.append(threading.current_thread())
    Answer.objects.create(text="saved", outcome=end.outcome, error="")


def view(request: Any) -> Any:
    seen.threads.append(threading.current_thread())
    return relay.django.stream_response(request, lambda: opens(request.GET["url"]), on_end=on_end)


async def aview(request: Any) -> Any:
    return relay.django.stream_response(request, lambda: opens(request.GET["url"]), on_end=on_end)


async def coroutine_view(request: Any) -> Any:
    async def function() -> Any:
        return await aopens(request.GET["url"])

    return relay.django.stream_response(request, function, on_end=on_end)


async def lambda_view(request: Any) -> Any:
    return relay.django.stream_response(request, lambda: aopens(request.GET["url"]), on_end=on_end)


def early(request: Any) -> Any:
    return relay.django.stream_response(request, lambda: opens(request.GET["url"]), on_end=on_end, early=True)


urlpatterns = [
    route("view", view),
    route("aview", aview),
    route("coroutine", coroutine_view),
    route("lambda", lambda_view),
    route("early", early),
]


@pytest.fixture(autouse=True)
def fresh() -> None:
    seen.__init__()  # type: ignore[misc]


@pytest.mark.leaves("descriptor")  # The journal of the transaction that surrounds all tests of the class.
@override_settings(ROOT_URLCONF=__name__)
class FunctionsInTransactions(TestCase):  # type: ignore[misc]
    @classmethod
    def setUpClass(cls) -> None:
        create_table()
        super().setUpClass()

    @classmethod
    def tearDownClass(cls) -> None:
        super().tearDownClass()
        connection.close()

    def setUp(self) -> None:
        Answer.objects.create(text="of this transaction", outcome="", error="")

    def test_function_sees_the_transaction_of_the_test(self) -> None:
        for name in ("view", "aview"):
            with SSEServer([send({"n": 1}), send("[DONE]")]) as server:
                assert b'{"n": 1}' in self.client.get(f"/{name}", {"url": server.url}).getvalue()
            assert seen.texts == ["of this transaction"]
            newest = Answer.objects.order_by("-id").first()
            assert (newest.text, newest.outcome) == ("saved", "done")
            newest.delete()
            seen.texts.clear()

    async def test_function_sees_the_transaction_of_an_asynchronous_test(self) -> None:
        for name in ("view", "aview", "coroutine", "lambda", "early"):
            with SSEServer([send({"n": 1}), send("[DONE]")]) as server:
                response = await self.async_client.get(f"/{name}", {"url": server.url})
                assert b'{"n": 1}' in b"".join([piece async for piece in response.streaming_content])
            assert seen.texts == ["of this transaction"], name
            newest = await Answer.objects.order_by("-id").afirst()
            assert (newest.text, newest.outcome) == ("saved", "done")
            await newest.adelete()
            seen.texts.clear()


@pytest.mark.slow
@pytest.mark.parametrize("make", [WSGIHandler, ASGIHandler])
def test_function_and_on_end_run_in_the_views_thread(make: Any) -> None:
    create_table()
    serve = under_uvicorn if make is ASGIHandler else under_werkzeug
    with (
        override_settings(ROOT_URLCONF=__name__),
        SSEServer([send({"n": 1}), send("[DONE]")]) as server,
        serve(make()) as url,
    ):
        assert '{"n": 1}' in httpx.get(f"{url}/view", params={"url": server.url}).text
        until(lambda: len(seen.threads) == 3)
    assert len(set(seen.threads)) == 1
    connection.close()


@pytest.mark.slow
def test_client_that_leaves_while_the_function_waits_aborts_its_request() -> None:
    create_table()
    with (
        override_settings(ROOT_URLCONF=__name__),
        SSEServer([silence()]) as server,
        under_uvicorn(ASGIHandler()) as url,
    ):
        with sending(url, f"GET /view?url={server.url} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"):
            request = server.wait_for_request()
        request.wait_aborted()
        until(lambda: len(seen.threads) == 3)
    connection.close()
