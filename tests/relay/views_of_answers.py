"""Django views that relay an answer and save its text and outcome, for tests under real servers and Django's TestCase.

Django must be set up before this module is imported.
"""

from __future__ import annotations

import functools
from typing import Any

from django.db import connection, models
from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase

from sseqbridge import arequest_sse, relay, request_sse
from sseqbridge.relay import RelayEnd
from tests.apps import relay_options

__all__ = ["Answer", "ajson", "answers", "asave", "create_table", "save"]


class Answer(models.Model):  # type: ignore[misc]
    text = models.TextField()
    outcome = models.CharField(max_length=20)
    error = models.CharField(max_length=50)

    class Meta:
        app_label = "saved_answers"


def create_table() -> None:
    """Create the table, unless there is one."""
    if Answer._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Answer)


def _fields(parts: list[dict[str, str]], end: RelayEnd) -> dict[str, str]:
    text = "".join(part["text"] for part in parts)
    return {"text": text, "outcome": end.outcome, "error": type(end.error).__name__}


def save(request: HttpRequest) -> HttpResponseBase:
    """Save with a plain function, from a synchronous view."""
    parts: list[dict[str, str]] = []

    def on_end(end: RelayEnd) -> None:
        Answer.objects.create(**_fields(parts, end))

    return relay.django.stream_response(
        request,
        functools.partial(request_sse, request.GET["upstream"]),
        on_item=parts.append,
        on_end=on_end,
        **relay_options(request.GET),
    )


async def asave(request: HttpRequest) -> HttpResponseBase:
    """Save with a coroutine function, from an asynchronous view."""
    parts: list[dict[str, str]] = []

    async def on_end(end: RelayEnd) -> None:
        await Answer.objects.acreate(**_fields(parts, end))

    return relay.django.stream_response(
        request,
        functools.partial(arequest_sse, request.GET["upstream"]),
        on_item=parts.append,
        on_end=on_end,
        **relay_options(request.GET),
    )


def answers(request: HttpRequest) -> JsonResponse:
    """Return what was saved."""
    return JsonResponse(list(saved()), safe=False)


async def ajson(request: HttpRequest) -> JsonResponse:
    """Return what was saved, in a coroutine."""
    found = [[answer.text, answer.outcome, answer.error] async for answer in Answer.objects.order_by("id")]
    return JsonResponse(found, safe=False)


def saved() -> Any:
    """Return text, outcome and the name of the error's type of each answer, in order."""
    return Answer.objects.order_by("id").values_list("text", "outcome", "error")
