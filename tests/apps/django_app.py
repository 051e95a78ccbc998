"""Relays in Django, in one file, with GZipMiddleware: `python -m tests.apps.django_app runserver`, `wsgi`, `asgi`."""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest

from sseqbridge import arequest_sse, relay, request_sse
from tests.apps import GENERATORS, LARGE, relay_options, running_loop

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        MIDDLEWARE=["django.middleware.gzip.GZipMiddleware"],
        INSTALLED_APPS=["django.contrib.contenttypes"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                # A directory of the server's own.
                "NAME": Path(tempfile.mkdtemp()) / "database",
            }
        },
    )
    django.setup()

from django.contrib.contenttypes.models import ContentType
from django.core.asgi import get_asgi_application
from django.core.management import call_command, execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import path, re_path

from tests.relay.views_of_answers import ajson, answers, asave, create_table, save


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse(LARGE, content_type="text/plain")


def stream(request: HttpRequest) -> HttpResponseBase:
    return relay.django.stream_response(request, request_sse(request.GET["upstream"]), **relay_options(request.GET))


async def astream(request: HttpRequest) -> HttpResponseBase:
    ask: Any = arequest_sse if isinstance(request, ASGIRequest) else sync_to_async(request_sse)
    opened = await ask(request.GET["upstream"])
    return relay.django.stream_response(request, opened, **relay_options(request.GET))


def function(request: HttpRequest) -> HttpResponseBase:
    ask = partial(request_sse, request.GET["upstream"])
    return relay.django.stream_response(request, ask, **relay_options(request.GET))


async def afunction(request: HttpRequest) -> HttpResponseBase:
    ask: Any = arequest_sse if isinstance(request, ASGIRequest) else request_sse
    return relay.django.stream_response(request, partial(ask, request.GET["upstream"]), **relay_options(request.GET))


def generated(request: HttpRequest, name: str) -> HttpResponseBase:
    return relay.django.stream_response(request, GENERATORS[name](request.GET), **relay_options(request.GET))


async def agenerated(request: HttpRequest, name: str) -> HttpResponseBase:
    return generated(request, name)


def orm(request: HttpRequest) -> JsonResponse:
    """Use the database while a stream is open."""
    with closing(request_sse(request.GET["upstream"]).events) as events:
        item = next(events)
        kind, _ = ContentType.objects.get_or_create(app_label="tests", model="kind")
        return JsonResponse({"item": item, "model": kind.model, "loop": running_loop()})


urlpatterns = [
    path("plain", plain),
    path("relay", stream),
    path("arelay", astream),
    path("function", function),
    path("afunction", afunction),
    path("orm", orm),
    path("save", save),
    path("asave", asave),
    path("answers", answers),
    path("aanswers", ajson),
    re_path("^(counting|endless|cancelling)$", generated),
    re_path("^(acounting|aendless|acancelling)$", agenerated),
]

call_command("migrate", verbosity=0)
create_table()
wsgi = get_wsgi_application()
asgi = get_asgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
