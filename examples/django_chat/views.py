"""The views. They are synchronous, and run under WSGI and ASGI."""

from __future__ import annotations

import json
import mimetypes
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.contrib.staticfiles import finders
from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, render
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_POST

from examples import endpoint
from sseqbridge import relay
from sseqbridge.relay import RelayEnd

from .models import Answer


@login_required  # type: ignore[untyped-decorator]
@ensure_csrf_cookie  # type: ignore[untyped-decorator]
def page(request: HttpRequest) -> HttpResponseBase:
    return render(request, "chat.html", {"answers": request.user.answers.order_by("pk")})


@login_required  # type: ignore[untyped-decorator]
@require_POST  # type: ignore[untyped-decorator]
def ask(request: HttpRequest) -> HttpResponseBase:
    """Stream the answer to a question, and save it when it ends, also after a disconnect."""
    question = question_in(request.body)
    messages = conversation_of(request.user, question)
    answer = Answer.objects.create(user=request.user, question=question)
    parts: list[str] = []

    def on_item(chunk: dict[str, Any]) -> None:
        parts.append(endpoint.text_of(chunk))

    def on_end(end: RelayEnd) -> None:
        Answer.objects.filter(pk=answer.pk).update(text="".join(parts), outcome=end.outcome)

    return relay.django.stream_response(
        request,
        partial(endpoint.ask, messages),
        map=item_of,
        on_item=on_item,
        on_end=on_end,
    )


@login_required  # type: ignore[untyped-decorator]
def saved(request: HttpRequest, key: UUID) -> HttpResponseBase:
    """Return a saved answer. A page that is reloaded asks until the outcome is not "running" any more."""
    answer = get_object_or_404(request.user.answers, key=key)
    return JsonResponse({"text": answer.text, "outcome": answer.outcome})


def item_of(chunk: dict[str, Any]) -> dict[str, str] | None:
    """Return what the page gets for one chunk; None: nothing."""
    text = endpoint.text_of(chunk)
    return {"text": text} if text else None


def question_in(body: bytes) -> str:
    try:
        question = json.loads(body)["question"]
    except (ValueError, TypeError, KeyError):
        raise BadRequest("send {'question': ...} as JSON") from None
    if not isinstance(question, str):
        raise BadRequest("`question` must be a string")
    return question


def conversation_of(user: Any, question: str) -> list[endpoint.Message]:
    """Return the user's saved conversation and the new question, as the endpoint expects them."""
    messages = []
    for earlier in user.answers.exclude(text="").order_by("pk"):
        messages.append({"role": "user", "content": earlier.question})
        messages.append({"role": "assistant", "content": earlier.text})
    return [*messages, {"role": "user", "content": question}]


def static(request: HttpRequest, path: str) -> HttpResponseBase:
    """Serve a static file without `collectstatic`: for this example alone."""
    file = finders.find(path)
    if file is None:
        raise Http404
    return HttpResponse(Path(file).read_bytes(), content_type=mimetypes.guess_type(path)[0])
