"""The view in Django, under WSGI and ASGI.

    gunicorn -k gthread --threads 100 examples.sdk_chat.django_app:wsgi
    uvicorn examples.sdk_chat.django_app:asgi
"""

from __future__ import annotations

import logging
import secrets
from functools import partial

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import path

from sseqbridge import relay
from sseqbridge.relay.django import ErrorMiddleware

from .providers import ERRORS, PROVIDERS, refusal

settings.configure(
    SECRET_KEY=secrets.token_urlsafe(),
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[f"{__name__}.ProviderErrors"],
)
logger = logging.getLogger(__name__)


class ProviderErrors(ErrorMiddleware):
    """Answers an error of an SDK before the stream. (A relay reports later errors as an event.)"""

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not isinstance(exception, ERRORS):
            return super().process_exception(request, exception)
        logger.warning("%s", type(exception).__name__)
        status, headers = refusal(exception)
        return JsonResponse({"error": {"message": "The upstream cannot be reached."}}, status=status, headers=headers)


def plain(request: HttpRequest) -> HttpResponseBase:
    return HttpResponse("Ask /openai?prompt=... or /anthropic?prompt=...")


def answer(request: HttpRequest, name: str) -> HttpResponseBase:
    """Relay an SDK's stream. A client that leaves aborts it, while it is silent and before it has begun."""
    if name not in PROVIDERS:
        return JsonResponse({"error": {"message": "There is no such provider."}}, status=404)
    provider = PROVIDERS[name]
    ask = partial(provider.ask, request.GET["prompt"])
    return relay.django.stream_response(request, ask, map=provider.text, done="[DONE]")


urlpatterns = [path("plain", plain), path("<name>", answer)]

wsgi = get_wsgi_application()
asgi = get_asgi_application()
