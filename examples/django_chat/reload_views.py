"""Views whose answers survive a reload: a log keeps each answer, and goes on with it while nobody reads.

They replace `ask` and the page's requests for unfinished answers. Stop is `log.cancel(key_of(answer))`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import path
from django.views.decorators.http import require_POST

from examples import endpoint
from sseqbridge import SSEError, relay
from sseqbridge.relay import RelayEnd
from sseqbridge.resume import MemoryLog

from .models import Answer
from .views import conversation_of, question_in

log = MemoryLog(abandon_after=60)  # several processes share a RedisLog.from_url(...)
# Seconds for which a reader waits until the stream has begun.
WAIT = 5.0


def key_of(answer: Answer) -> str:
    return f"answer-{answer.pk}"


@login_required  # type: ignore[untyped-decorator]
@require_POST  # type: ignore[untyped-decorator]
def ask(request: HttpRequest) -> HttpResponseBase:
    question = question_in(request.body)
    messages = conversation_of(request.user, question)
    answer = Answer.objects.create(user=request.user, question=question)
    stream = log.open(key_of(answer), start=partial(endpoint.ask, messages))
    return stream_answer(request, answer, stream)


@login_required  # type: ignore[untyped-decorator]
def read(request: HttpRequest, pk: int) -> HttpResponseBase:
    """Stream an answer from its beginning, or from where a client was that has lost its connection."""
    answer = get_object_or_404(request.user.answers, pk=pk)
    last_event_id = request.headers.get("Last-Event-ID")
    stream = partial(log.open, key_of(answer), last_event_id=last_event_id, wait=WAIT)
    return stream_answer(request, answer, stream)


def stream_answer(request: HttpRequest, answer: Answer, stream: Any) -> HttpResponseBase:
    def on_end(end: RelayEnd) -> None:
        if end.outcome == "disconnected":
            return  # The answer goes on.
        text = ""
        try:
            for chunk in log.open(key_of(answer), wait=0):
                text += endpoint.text_of(chunk)
        except SSEError:
            pass  # The answer has failed, which the outcome says.
        Answer.objects.filter(pk=answer.pk, outcome="running").update(text=text, outcome=end.outcome)

    return relay.django.stream_response(request, stream, on_end=on_end)


urlpatterns = [path("answers", ask), path("answers/<int:pk>/stream", read)]
