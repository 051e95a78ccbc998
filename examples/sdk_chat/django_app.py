"""The view in Django: `gunicorn examples.sdk_chat.django_app:wsgi` or `uvicorn examples.sdk_chat.django_app:asgi`."""

from __future__ import annotations

import logging
import secrets

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import path

from sseqbridge import cancel_on, relay

from .providers import ERRORS, PROVIDERS

settings.configure(
    SECRET_KEY=secrets.token_urlsafe(), ALLOWED_HOSTS=["127.0.0.1", "localhost"], ROOT_URLCONF=__name__
)
logger = logging.getLogger(__name__)


def plain(request: HttpRequest) -> HttpResponseBase:
    return HttpResponse("Ask /openai?prompt=... or /anthropic?prompt=...")


def answer(request: HttpRequest, name: str) -> HttpResponseBase:
    """Relay an SDK's stream. A reader who leaves aborts it. Under ASGI a thread waits until it has begun."""
    if name not in PROVIDERS:
        return JsonResponse({"error": {"message": "There is no such provider."}}, status=404)
    provider = PROVIDERS[name]
    # The scope covers the wait for the upstream's headers. The relay watches the reader from then on.
    with cancel_on(relay.reader_left(request.META)):
        try:
            stream = provider.ask(request.GET["prompt"])
        except ERRORS as error:
            logger.warning("%s: %s", name, type(error).__name__)
            return JsonResponse({"error": {"message": "The upstream cannot be reached."}}, status=502)
        return relay.django.stream_response(request, stream, map=provider.text, done="[DONE]")
    return HttpResponse(status=499)


urlpatterns = [path("plain", plain), path("<name>", answer)]

wsgi = get_wsgi_application()
asgi = get_asgi_application()
