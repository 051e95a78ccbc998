"""The page of examples/flask_chat on Django, in one file: the same views under WSGI and under ASGI.

    python -m examples.django_chat runserver 5000
    gunicorn --worker-class gthread --threads 100 examples.django_chat:wsgi
    uvicorn examples.django_chat:asgi

Like that example it sends its requests to an upstream of its own, or to the endpoint that OPENAI_API_KEY and
OPENAI_BASE_URL name.

A disconnect during a silent stream is detected at once under ASGI, and within a second by gunicorn. runserver does not
expose its sockets: there a heartbeat that cannot be sent shows the disconnect.
"""

from __future__ import annotations

import json
import logging
import mimetypes
import secrets
import sys
from pathlib import Path

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import path
from django.views.decorators.csrf import ensure_csrf_cookie

from examples.flask_chat.upstream import (
    Message,
    conversation,
    feed,
    is_cross_site,
    piece_of,
    upstream_from_environment,
)
from sseqbridge import SSEError, relay

settings.configure(
    SECRET_KEY=secrets.token_urlsafe(),
    ALLOWED_HOSTS=["127.0.0.1", "localhost", "[::1]"],
    ROOT_URLCONF=__name__,
    # The page's POST sends the CSRF token in a header. EventSource cannot set one.
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
)

STATIC = Path(__file__).parent / "flask_chat" / "static"

logger = logging.getLogger(__name__)
upstream = upstream_from_environment()


def page(request: HttpRequest) -> HttpResponseBase:
    return static(request, "chat.html")


def static(request: HttpRequest, name: str) -> HttpResponseBase:
    """Send a file of the page as a whole. FileResponse is synchronous, and warns about that under ASGI."""
    file = STATIC / name
    if not file.is_file():
        raise Http404(name)
    return HttpResponse(file.read_bytes(), content_type=mimetypes.guess_type(name)[0])


def chat(request: HttpRequest) -> HttpResponseBase:
    """Answer a conversation (POST), or one question (EventSource, which can resume a broken connection)."""
    if request.method == "POST":
        messages = conversation_of(request)
        return refusal("send an object with a list of messages", 400) if messages is None else answer(request, messages)
    if is_cross_site(request.headers.get("Sec-Fetch-Site")):
        return refusal("only pages of this site may request answers", 403)
    question = {"role": "user", "content": request.GET.get("prompt", "")}
    return answer(request, [question], request.headers.get("Last-Event-ID", ""))


def panel(request: HttpRequest) -> HttpResponseBase:
    return relay.django.stream_response(request, feed(upstream))


def conversation_of(request: HttpRequest) -> list[Message] | None:
    try:
        return conversation(json.loads(request.body))
    except ValueError:
        return None


def answer(request: HttpRequest, messages: list[Message], last_event_id: str = "") -> HttpResponseBase:
    """Relay the upstream's answer. Under ASGI a thread is used only until the upstream's headers arrive."""
    # Detects a disconnect before the upstream's headers; later the relay does so itself.
    disconnected = relay.reader_left(request.META)
    try:
        return relay.django.stream_response(request, upstream.ask(messages, last_event_id, disconnected), map=piece_of)
    except SSEError as error:
        # There is no answer yet. (The relay reports an error within an answer itself.)
        logger.warning("%s: %s", type(error).__name__, error)
        return refusal("The upstream cannot be reached.", 502)


def refusal(message: str, status: int) -> HttpResponseBase:
    return JsonResponse({"error": {"message": message}}, status=status)


urlpatterns = [
    path("", ensure_csrf_cookie(page)),
    path("chat", chat),
    path("panel", panel),
    path("static/<name>", static),
]

wsgi = get_wsgi_application()
asgi = get_asgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
