"""Views whose answers survive a reload: a log keeps each answer, and continues it without readers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from django.contrib.auth.decorators import login_required
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import path
from django.views.decorators.http import require_POST

from examples import endpoint
from sseqbridge import SSEError, relay
from sseqbridge.resume import MemoryLog

from .models import Answer
from .views import conversation_of, question_in

log = MemoryLog(abandon_after=60)  # several processes share a RedisLog.from_url(...)
# Seconds for which a reader waits until the POST has begun the stream.
WAIT = 1.0


def key_of(answer: Answer) -> str:
    return f"answer-{answer.pk}"


def saved_answer(answer: Answer, messages: list[endpoint.Message]) -> Iterator[Any]:
    """Ask, and save the answer once: whole or not, with or without readers. Runs in a thread of its own."""
    answer.outcome = "cancelled"  # after log.cancel or `abandon_after`
    try:
        for chunk in endpoint.ask(messages).raise_for_status().events:
            answer.text += endpoint.text_of(chunk)
            yield chunk
        answer.outcome = "done"
    except SSEError:
        answer.outcome = "error"
        raise  # The page gets an `event: error`.
    finally:
        answer.save()
        connections.close_all()


@login_required  # type: ignore[untyped-decorator]
@require_POST  # type: ignore[untyped-decorator]
def ask(request: HttpRequest) -> HttpResponseBase:
    question = question_in(request.body)
    messages = conversation_of(request.user, question)
    answer = Answer.objects.create(user=request.user, question=question)
    stream = log.open(key_of(answer), start=partial(saved_answer, answer, messages))
    return relay.django.stream_response(request, stream, done="[DONE]")


@login_required  # type: ignore[untyped-decorator]
def read(request: HttpRequest, pk: int) -> HttpResponseBase:
    """Stream an answer from its beginning, or from where a client was that has lost its connection."""
    answer = get_object_or_404(request.user.answers, pk=pk)
    last_event_id = request.headers.get("Last-Event-ID")
    stream = partial(log.open, key_of(answer), last_event_id=last_event_id, wait=WAIT)
    return relay.django.stream_response(request, stream, done="[DONE]")


@login_required  # type: ignore[untyped-decorator]
@require_POST  # type: ignore[untyped-decorator]
def stop(request: HttpRequest, pk: int) -> HttpResponseBase:
    """End an answer for all its readers; 404 if it is not running."""
    is_running = log.cancel(key_of(get_object_or_404(request.user.answers, pk=pk)))
    return HttpResponse(status=204 if is_running else 404)


urlpatterns = [
    path("answers", ask),
    path("answers/<int:pk>/stream", read),
    path("answers/<int:pk>/stop", stop),
]
