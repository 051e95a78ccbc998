"""The views. They are synchronous, and run under WSGI and ASGI."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, render
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_POST

from examples import endpoint
from sseqbridge import relay
from sseqbridge.relay import RelayEnd

from .models import Answer

# A production site serves these with its other static files.
_EXAMPLES = Path(__file__).parent.parent
_FILES = {"relay.js": _EXAMPLES / "flask_chat/static/relay.js", "page.css": _EXAMPLES / "small_chat/page.css"}


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
        map=lambda chunk: {"text": text} if (text := endpoint.text_of(chunk)) else None,
        on_item=on_item,
        on_end=on_end,
    )


@login_required  # type: ignore[untyped-decorator]
def saved(request: HttpRequest, pk: int) -> HttpResponseBase:
    """Return a saved answer. A page that is reloaded asks until the outcome is not "running" any more."""
    answer = get_object_or_404(request.user.answers, pk=pk)
    return JsonResponse({"text": answer.text, "outcome": answer.outcome})


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


def static(request: HttpRequest, name: str) -> HttpResponseBase:
    kind = "text/javascript" if name.endswith("js") else "text/css"
    return HttpResponse(_FILES[name].read_bytes(), content_type=kind)
