"""The tests, with Django's test clients: `python -m examples.django_chat test examples.django_chat`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
import threading
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connections
from django.test import Client, SimpleTestCase, TestCase, TransactionTestCase

from examples import endpoint
from sseqbridge import BridgeClosedError
from sseqbridge.resume import MemoryLog
from sseqbridge.testing import SSEServer, chat_completions, cut, hold, respond, send, silence

from . import reload_views
from .models import Answer

HELLO = send({"choices": [{"delta": {"content": "Hello"}}]})


class ChatTestCase(SimpleTestCase):  # type: ignore[misc]
    def setUp(self) -> None:
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.upstream = stack.enter_context(SSEServer(chat_completions("Hello, Ada.")))
        stack.enter_context(mock.patch.dict(os.environ, {"OPENAI_BASE_URL": self.upstream.url}))
        self.user = get_user_model().objects.create_user("ada")
        self.client.force_login(self.user)

    def ask(self, question: object = "Hi", path: str = "/answers", **options: Any) -> Any:
        return self.client.post(path, {"question": question}, content_type="application/json", **options)

    def saved(self) -> list[tuple[str, str, str]]:
        return list(Answer.objects.order_by("pk").values_list("question", "text", "outcome"))


class ChatTests(ChatTestCase, TestCase):  # type: ignore[misc]
    def test_answer_streams_and_is_saved(self) -> None:
        body = self.ask().getvalue().decode()
        assert 'data: {"text":"Hello, "}' in body
        assert body.endswith("data: [DONE]\n\n")
        assert self.saved() == [("Hi", "Hello, Ada.", "done")]

    def test_conversation_is_sent(self) -> None:
        for question in ("Hi", "Again?"):
            self.ask(question).getvalue()
        messages = self.upstream.requests[1].json()["messages"]
        assert [message["content"] for message in messages] == ["Hi", "Hello, Ada.", "Again?"]

    def test_stopped_answer_aborts_its_upstream_and_is_saved(self) -> None:
        self.upstream.play([HELLO, silence()])
        response = self.ask()
        assert b"Hello" in next(piece for piece in response.streaming_content if b"data" in piece)
        response.close()  # the web server does the same when the client leaves
        self.upstream.assert_aborted()
        assert self.saved() == [("Hi", "Hello", "disconnected")]

    def test_answer_that_is_cut_off_looks_failed(self) -> None:
        self.upstream.play([HELLO, cut()])
        assert b"event: error" in self.ask().getvalue()
        assert self.saved() == [("Hi", "Hello", "error")]

    def test_refusal_is_a_502_without_its_body(self) -> None:
        self.upstream.play([respond(401, json={"error": {"message": "wrong key"}})])
        response = self.ask()
        assert response.status_code == 502
        assert b"wrong key" not in response.content
        assert self.saved() == [("Hi", "", "error")]

    async def test_asynchronous_server(self) -> None:
        await self.async_client.aforce_login(self.user)
        response = await self.async_client.post("/answers", {"question": "Hi"}, content_type="application/json")
        pieces = [piece async for piece in response.streaming_content]
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
        assert [answer.outcome async for answer in Answer.objects.all()] == ["done"]

    async def test_stopped_answer_under_asgi(self) -> None:
        self.upstream.play([HELLO, silence()])
        await self.async_client.aforce_login(self.user)
        response = await self.async_client.post("/answers", {"question": "Hi"}, content_type="application/json")
        async for piece in response.streaming_content:
            if b"Hello" in piece:
                break
        await sync_to_async(response.close)()  # as Django's handler does; it returns after `on_end`
        await asyncio.to_thread(self.upstream.assert_aborted)
        assert [answer.outcome async for answer in Answer.objects.all()] == ["disconnected"]

    def test_page_shows_saved_answers(self) -> None:
        Answer.objects.create(user=self.user, question="<Hi>", text="Hello, <Ada>.", outcome="done")
        page = self.client.get("/")
        self.assertContains(page, "Hello, &lt;Ada&gt;.")
        assert "csrftoken" in page.cookies

    def test_saved_answer_is_its_users_alone(self) -> None:
        answer = Answer.objects.create(user=self.user, question="Hi", text="Hello", outcome="done")
        assert self.client.get(f"/answers/{answer.key}").json() == {"text": "Hello", "outcome": "done"}
        self.client.force_login(get_user_model().objects.create_user("eve"))
        assert self.client.get(f"/answers/{answer.key}").status_code == 404

    def test_malformed_questions_are_refused(self) -> None:
        assert self.ask(1).status_code == 400
        assert self.client.post("/answers", "{", content_type="application/json").status_code == 400
        assert self.client.get("/answers").status_code == 405

    def test_login_and_csrf_token_are_required(self) -> None:
        strict = Client(enforce_csrf_checks=True)
        strict.force_login(self.user)
        assert strict.post("/answers", {"question": "Hi"}).status_code == 403
        self.client.logout()
        self.assertRedirects(self.ask(), "/accounts/login/?next=/answers")
        self.assertRedirects(self.client.get("/"), "/accounts/login/?next=/")
        assert (self.saved(), self.upstream.requests) == ([], [])

    def test_static_files_are_served_and_collected(self) -> None:
        for name, kind in (("relay.js", "javascript"), ("page.css", "css")):
            response = self.client.get(f"/static/chat/{name}")
            assert kind in response.headers["Content-Type"]
            assert f"/static/chat/{name}" in self.client.get("/").content.decode()
        assert self.client.get("/static/chat/unknown.js").status_code == 404
        with tempfile.TemporaryDirectory() as directory, self.settings(STATIC_ROOT=directory):
            call_command("collectstatic", interactive=False, verbosity=0)
            assert b"readByFetch" in (Path(directory) / "chat/relay.js").read_bytes()


class ReloadTests(ChatTestCase, TransactionTestCase):  # type: ignore[misc]
    """A thread of the log saves the answer, and must see the user: no TestCase."""

    def setUp(self) -> None:
        super().setUp()
        self.use_log()
        self.url = f"/reload/answers/{uuid4()}"

    def use_log(self) -> None:
        """Use a new log, so that no answer outlives its test. A GET of an unknown answer does not wait in it."""
        self.log = MemoryLog()
        self.addCleanup(self.log.close)
        patched = mock.patch.multiple(reload_views, log=self.log, WAIT=0)
        patched.start()
        self.addCleanup(patched.stop)

    def begin(self) -> bytes:
        """Begin an answer, leave it as a reload or a lost connection does, and return what has arrived."""
        response = self.ask(path=self.url)
        piece: bytes = next(piece for piece in response.streaming_content if b"data" in piece)
        response.close()
        assert b'data: {"text":"Hello"}' in piece
        assert self.saved() == [("Hi", "", "running")]
        return piece

    def test_answer_goes_on_after_a_reload(self) -> None:
        self.upstream.play([HELLO, hold(), HELLO, send("[DONE]")])
        self.begin()
        self.assertContains(self.client.get("/reload/"), f'data-key="{self.url[-36:]}" data-outcome="running"')
        response = self.client.get(f"{self.url}/stream")
        self.upstream.release()
        body = response.getvalue()
        assert (body.count(b"Hello"), body.endswith(b"data: [DONE]\n\n")) == (2, True)
        assert self.saved() == [("Hi", "HelloHello", "done")]
        assert len(self.upstream.requests) == 1

    def test_post_that_is_sent_again_continues_the_answer(self) -> None:
        self.upstream.play([HELLO, hold(), HELLO, send("[DONE]")])
        [last_event_id] = re.findall(r"^id: ?(.*)$", self.begin().decode(), re.M)
        response = self.ask(path=self.url, headers={"Last-Event-ID": last_event_id})
        self.upstream.release()
        body = response.getvalue()
        assert (body.count(b"Hello"), body.endswith(b"data: [DONE]\n\n")) == (1, True)
        assert len(self.upstream.requests) == 1

    def test_saved_answer_is_never_asked_again(self) -> None:
        for _ in range(2):
            data = re.findall(rb"^data: (.*)$", self.ask(path=self.url).getvalue(), re.M)
            assert data == [b'{"text":"Hello, "}', b'{"text":"Ada."}', b"[DONE]"]
        self.use_log()  # as after its `ttl`
        assert self.ask(path=self.url).status_code == 404  # the page then shows what is saved
        assert self.client.get(f"{self.url}/saved").json() == {"text": "Hello, Ada.", "outcome": "done"}
        assert len(self.upstream.requests) == 1

    def notice_save(self) -> threading.Event:
        """Return an event that is set once an answer was saved."""
        save, is_saved = reload_views.save, threading.Event()

        def save_and_set(*arguments: Any) -> None:
            try:
                save(*arguments)
            finally:
                is_saved.set()

        patched = mock.patch.object(reload_views, "save", save_and_set)
        patched.start()
        self.addCleanup(patched.stop)
        return is_saved

    def test_answer_is_stopped_for_all_readers(self) -> None:
        self.upstream.play([HELLO, silence()])
        self.begin()
        response = self.client.get(f"{self.url}/stream")
        is_saved = self.notice_save()
        assert self.client.post(f"{self.url}/stop").status_code == 204
        assert b"event: cancelled" in response.getvalue()
        self.upstream.assert_aborted()
        assert is_saved.wait(10)  # the readers do not wait for it
        assert self.saved() == [("Hi", "Hello", "cancelled")]

    def test_answer_that_fails_is_saved(self) -> None:
        self.upstream.play([HELLO, cut()])
        assert b"event: error" in self.ask(path=self.url).getvalue()
        assert self.saved() == [("Hi", "Hello", "error")]

    def test_exception_of_the_application_is_saved_as_an_error(self) -> None:
        self.upstream.play([HELLO, send([1, 2]), silence()])  # AttributeError
        with self.assertLogs("sseqbridge", "ERROR"):
            assert b"event: error" in self.ask(path=self.url).getvalue()
        assert self.saved() == [("Hi", "Hello", "error")]

    def test_answer_that_is_refused_at_once_is_saved_with_atomic_requests(self) -> None:
        self.upstream.play([respond(401)])
        is_saved, open_log = self.notice_save(), self.log.open

        def open_and_wait(*arguments: Any, **options: Any) -> Any:
            stream = open_log(*arguments, **options)
            assert is_saved.wait(10)
            return stream

        with (
            mock.patch.object(self.log, "open", open_and_wait),
            mock.patch.dict(connections.settings["default"], ATOMIC_REQUESTS=True),
        ):
            assert b"event: error" in self.ask(path=self.url).getvalue()
        assert self.saved() == [("Hi", "", "error")]

    def test_process_that_was_taken_over_leaves_a_complete_answer(self) -> None:
        self.upstream.play([HELLO, silence()], chat_completions("Hello, Ada."))
        answer = Answer.objects.create(user=self.user, question="Hi")
        lost: Any = reload_views.saved_answer(answer, [])
        next(lost)
        list(reload_views.saved_answer(answer, []))
        lost.close()
        assert self.saved() == [("Hi", "Hello, Ada.", "done")]

    def test_answer_of_a_process_that_ends_starts_again(self) -> None:
        ask = endpoint.ask
        with (
            mock.patch.object(endpoint, "ask", side_effect=[BridgeClosedError("the process ends"), ask([])]),
            mock.patch.object(reload_views, "save", wraps=reload_views.save) as save,
        ):
            body = self.ask(path=self.url).getvalue()
        assert [outcome for (_, _, outcome), _ in save.call_args_list] == ["running", "done"]
        assert body.index(b"event: restart") < body.index(b"Hello") < body.index(b"[DONE]")
        assert self.saved() == [("Hi", "Hello, Ada.", "done")]

    def test_answer_that_is_deleted_stays_deleted(self) -> None:
        self.upstream.play([HELLO, hold(), send("[DONE]")])
        response = self.ask(path=self.url)
        assert b"Hello" in next(piece for piece in response.streaming_content if b"data" in piece)
        Answer.objects.all().delete()
        self.upstream.release()
        assert response.getvalue().endswith(b"data: [DONE]\n\n")
        assert self.saved() == []

    def test_answer_that_the_log_has_forgotten_is_refused(self) -> None:
        answer = Answer.objects.create(user=self.user, question="Hi", text="Hello", outcome="done")
        assert self.client.get(f"/reload/answers/{answer.key}/stream").status_code == 404
        assert self.client.post(f"/reload/answers/{answer.key}/stop").status_code == 404

    def test_answer_is_its_users_alone(self) -> None:
        self.ask(path=self.url).getvalue()
        self.client.force_login(get_user_model().objects.create_user("eve"))
        assert self.client.get(f"{self.url}/stream").status_code == 404
        assert self.client.post(f"{self.url}/stop").status_code == 404
        # The same key names an answer of Eve's own.
        self.upstream.play(chat_completions("Hello, Eve."))
        assert b"Eve" in self.ask(path=self.url).getvalue()
        assert [text for _, text, _ in self.saved()] == ["Hello, Ada.", "Hello, Eve."]

    def test_log_outlives_the_database(self) -> None:
        self.ask(path=self.url).getvalue()
        primary_key = Answer.objects.get().pk
        Answer.objects.all().delete()
        # After a reset of the database its primary key names an answer to somebody else.
        eve = get_user_model().objects.create_user("eve")
        answer = Answer.objects.create(pk=primary_key, user=eve, question="Hi")
        self.client.force_login(eve)
        self.upstream.play(chat_completions("Hello, Eve."))
        assert b"Eve" in self.ask(path=f"/reload/answers/{answer.key}").getvalue()
