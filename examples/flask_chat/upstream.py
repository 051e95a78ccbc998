"""Requests to the upstream, and their counts. Knows no web framework: the Celery worker uses this module too."""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from examples.flask_chat.scripted import PROMPTS, answers
from sseqbridge import Cancelled, EventStream, ServerSentEvent, SSEResponse, Timeout, request_sse
from sseqbridge.testing import SSEServer

__all__ = [
    "Message",
    "Upstream",
    "conversation",
    "feed",
    "is_cross_site",
    "piece_of",
    "upstream_from_environment",
]

Message = dict[str, str]

_OPENAI = "https://api.openai.com/v1"

# Suggested questions for a real model.
_SUGGESTIONS = [
    {"label": "What are Server-Sent Events?", "prompt": "What are Server-Sent Events?"},
    {"label": "A long answer, to stop", "prompt": "Tell me the history of HTTP, at length."},
]


class Upstream:
    """An OpenAI-style endpoint, and the counts of the requests to it."""

    def __init__(self, url: str, model: str, *, key: str | None = None, about: Mapping[str, Any] | None = None) -> None:
        self._url = f"{url}/chat/completions"
        self._model = model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.about = {"name": model, "place": f"at {url}", "suggestions": _SUGGESTIONS, **(about or {})}
        self._lock = threading.Lock()
        self._open: list[EventStream[Any]] = []
        self._counts = Counter({"open": 0, "answered": 0, "stopped": 0, "failed": 0})

    def ask(self, messages: list[Message], last_event_id: str = "") -> SSEResponse[Any]:
        """Return the response once its headers have arrived. With `last_event_id` it continues after that event.

        Raises Cancelled if the relay that called this function has lost its client.
        """
        headers = self._headers | ({"Last-Event-ID": last_event_id} if last_event_id else {})
        data = {"model": self._model, "messages": messages, "stream": True}
        self._count(open=1)
        try:
            # `read` limits the wait for the response's head. `idle` ends a stream without events, even if there are
            # heartbeats. `require_done` makes an answer without [DONE] an error: it was cut off.
            response = request_sse(self._url, headers, data, timeout=Timeout(read=60, idle=60), require_done=True)
        except BaseException as exc:
            self._count(open=-1, **{"stopped" if isinstance(exc, Cancelled) else "failed": 1})
            raise
        with self._lock:
            self._count_ended()
            self._open.append(response.events)
        return response

    def counts(self) -> dict[str, int]:
        """Return the numbers of open requests, and of ended ones by outcome."""
        with self._lock:
            self._count_ended()
            return dict(self._counts)

    def _count(self, **changes: int) -> None:
        with self._lock:
            self._counts.update(changes)

    def _count_ended(self) -> None:
        # A stream's `outcome` is set by any end, also by the relay's abort after a disconnect.
        ended = [stream for stream in self._open if stream.outcome is not None]
        self._open = [stream for stream in self._open if stream not in ended]
        self._counts.update(map(_outcome_name, ended))
        self._counts["open"] -= len(ended)


def _outcome_name(stream: EventStream[Any]) -> str:
    if stream.status != 200:
        return "failed"
    return {"done": "answered", "closed": "stopped"}.get(stream.outcome or "", "failed")


def upstream_from_environment() -> Upstream:
    """Return the endpoint that the environment selects, or one that this process serves."""
    key, url = os.environ.get("OPENAI_API_KEY"), os.environ.get("OPENAI_BASE_URL")
    if key or url:
        return Upstream(url or _OPENAI, os.environ.get("OPENAI_MODEL", "gpt-4o-mini"), key=key)
    server = SSEServer(answers).start()
    about = {"name": "a scripted upstream", "place": "inside this program", "suggestions": PROMPTS}
    return Upstream(f"{server.url}/v1", "scripted", about=about)


def conversation(body: Any) -> list[Message] | None:
    """Return the messages in the JSON body of a POST, None if the body is malformed."""
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        return None
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return value.get("role") in ("user", "assistant") and isinstance(value.get("content"), str)


def is_cross_site(site: str | None) -> bool:
    """Whether a page of another site sent the request, by its Sec-Fetch-Site. It must not cause costly requests."""
    return site not in (None, "same-origin", "none")


def piece_of(chunk: Any) -> dict[str, Any] | None:
    """Return the item for the page for one chunk, None for chunks without text, such as the first and the last.

    The item is a JSON object, since an event stream does not preserve the kind of a line break.
    """
    if "restart" in chunk:
        # From the log: another process has started the answer again.
        return {"restart": True}
    choices = chunk["choices"]
    text = choices[0]["delta"].get("content") if choices else None
    return {"text": text} if text else None


def feed(upstream: Upstream, *, keeps_answers: bool = False) -> Iterator[ServerSentEvent | dict[str, int] | None]:
    """Yield the figures of the panel, each time they change.

    For None the relay sends nothing, but can end this generator after a disconnect.
    """
    # Everybody who knows the key of an answer can read it, so each page gets an unguessable prefix for its keys.
    key = {"key": secrets.token_urlsafe()} if keeps_answers else {}
    # `retry`: the panel reconnects a second after a restart of the server.
    yield ServerSentEvent("about", json.dumps(upstream.about | key), retry=1.0)
    shown = None
    while True:
        counts = upstream.counts()
        yield counts if counts != shown else None
        shown = counts
        time.sleep(0.1)
