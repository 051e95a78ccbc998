"""The chat whose answers survive a reload: a log keeps each answer, and continues it without readers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, render
from django.urls import path
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_POST

from examples import endpoint
from examples.small_chat.answers import WAIT, log
from sseqbridge import BridgeClosedError, Cancelled, relay

from .models import Answer
from .views import conversation_of, item_of, question_in, saved


def key_of(answer: Answer) -> str:
    # The log of another database, or of one that was reset, must not lead to this answer: no primary key alone.
    return f"answer-{answer.user_id}-{answer.key}"


def saved_answer(answer: Answer, messages: list[endpoint.Message]) -> Iterator[Any]:
    """Ask, and save the answer once: whole or not, with or without readers. Runs in a thread of its own."""
    text, outcome = "", "error"  # After any exception but these the page gets an `event: error`.
    try:
        for chunk in endpoint.ask(messages).raise_for_status().events:
            text += endpoint.text_of(chunk)
            yield chunk
        outcome = "done"
    except (Cancelled, GeneratorExit):
        outcome = "cancelled"  # log.cancel, `abandon_after`, or another process has taken over
        raise
    except BridgeClosedError:
        text, outcome = "", "running"  # This process ends, not the answer: another one may take it over.
        raise
    finally:
        save(answer, text, outcome)
        connections.close_all()


def save(answer: Answer, text: str, outcome: str) -> None:
    """Save the end of an answer. A process of which another has taken over must not replace its complete answer."""
    rows = Answer.objects.filter(pk=answer.pk)
    if outcome != "done":
        rows = rows.exclude(outcome="done")
    rows.update(text=text, outcome=outcome)  # Unlike answer.save(), this adds no row if the user has deleted it.


@login_required  # type: ignore[untyped-decorator]
@ensure_csrf_cookie  # type: ignore[untyped-decorator]
def page(request: HttpRequest) -> HttpResponseBase:
    return render(request, "reload_chat.html", {"answers": request.user.answers.order_by("pk")})


@login_required  # type: ignore[untyped-decorator]
@require_POST  # type: ignore[untyped-decorator]
@transaction.non_atomic_requests  # type: ignore[untyped-decorator]
def ask(request: HttpRequest, key: UUID) -> HttpResponseBase:
    """Begin an answer. The same POST, sent again after a lost connection, continues it and does not ask twice."""
    question = question_in(request.body)
    answer, _ = request.user.answers.get_or_create(key=key, defaults={"question": question})
    if answer.outcome != "running":
        return read(request, key)
    start = partial(saved_answer, answer, conversation_of(request.user, answer.question))
    last_event_id = request.headers.get("Last-Event-ID")
    stream = log.open(key_of(answer), start, last_event_id=last_event_id, takeover=True)
    return relay.django.stream_response(request, stream, map=item_of, done="[DONE]")


@login_required  # type: ignore[untyped-decorator]
def read(request: HttpRequest, key: UUID) -> HttpResponseBase:
    """Stream an answer from its beginning, or from where a client was that has lost its connection."""
    answer = get_object_or_404(request.user.answers, key=key)
    last_event_id = request.headers.get("Last-Event-ID")
    stream = partial(log.open, key_of(answer), last_event_id=last_event_id, wait=WAIT)
    return relay.django.stream_response(request, stream, map=item_of, done="[DONE]")


@login_required  # type: ignore[untyped-decorator]
@require_POST  # type: ignore[untyped-decorator]
def stop(request: HttpRequest, key: UUID) -> HttpResponseBase:
    """End an answer for all its readers; 404 if it is not running."""
    is_running = log.cancel(key_of(get_object_or_404(request.user.answers, key=key)))
    return HttpResponse(status=204 if is_running else 404)


urlpatterns = [
    path("", page),
    path("answers/<uuid:key>", ask),
    path("answers/<uuid:key>/stream", read),
    path("answers/<uuid:key>/stop", stop),
    path("answers/<uuid:key>/saved", saved),
]
