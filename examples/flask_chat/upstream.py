"""Where the questions go, and what became of them. Knows no web framework: the Django example uses it too."""

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
from sseqbridge import EventStream, RequestAbortedError, ServerSentEvent, SSEResponse, Timeout, request_sse
from sseqbridge.testing import SSEServer

__all__ = [
    "Message",
    "Upstream",
    "conversation",
    "feed",
    "is_from_elsewhere",
    "piece_of",
    "upstream_from_environment",
]

Message = dict[str, str]

_OPENAI = "https://api.openai.com/v1"

# For an endpoint that can say anything.
_SUGGESTIONS = [
    {"label": "What are Server-Sent Events?", "prompt": "What are Server-Sent Events?"},
    {"label": "A long answer, to stop", "prompt": "Tell me the history of HTTP, at length."},
]


class Upstream:
    """An OpenAI-style endpoint, and the requests that were made to it."""

    def __init__(self, url: str, model: str, *, key: str | None = None, about: Mapping[str, Any] | None = None) -> None:
        self._url = f"{url}/chat/completions"
        self._model = model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.about = {"name": model, "place": f"at {url}", "suggestions": _SUGGESTIONS, **(about or {})}
        self._lock = threading.Lock()
        self._open: list[EventStream[Any]] = []
        self._counts = Counter({"open": 0, "answered": 0, "stopped": 0, "failed": 0})

    def ask(self, messages: list[Message], last_event_id: str = "", cancel: Any = None) -> SSEResponse[Any]:
        """Return the answer once its headers are in. With `last_event_id`, what comes after that event.

        `cancel` tells that nobody waits for it any more.
        """
        headers = self._headers | ({"Last-Event-ID": last_event_id} if last_event_id else {})
        data = {"model": self._model, "messages": messages, "stream": True}
        self._count(open=1)
        try:
            # `idle` ends a stream that says nothing for so long, heartbeats or not; `require_done` makes an
            # answer without its [DONE] an error: nobody should take half of one for the whole.
            response = request_sse(self._url, headers, data, timeout=Timeout(idle=60), require_done=True, cancel=cancel)
        except BaseException as exc:
            self._count(open=-1, **{"stopped" if isinstance(exc, RequestAbortedError) else "failed": 1})
            raise
        with self._lock:
            self._forget_what_has_ended()
            self._open.append(response.events)
        return response

    def counts(self) -> dict[str, int]:
        """Return how many requests are open, and how those that are not have ended."""
        with self._lock:
            self._forget_what_has_ended()
            return dict(self._counts)

    def _count(self, **changes: int) -> None:
        with self._lock:
            self._counts.update(changes)

    def _forget_what_has_ended(self) -> None:
        # A stream knows how it has ended, whoever ended it: the relay, when the reader left.
        ended = [stream for stream in self._open if stream.outcome is not None]
        self._open = [stream for stream in self._open if stream not in ended]
        self._counts.update(map(_how_it_ended, ended))
        self._counts["open"] -= len(ended)


def _how_it_ended(stream: EventStream[Any]) -> str:
    if stream.status != 200:
        return "failed"
    return {"done": "answered", "closed": "stopped"}.get(stream.outcome or "", "failed")


def upstream_from_environment() -> Upstream:
    """Return the endpoint that the environment names, or one that this process serves to itself."""
    key, url = os.environ.get("OPENAI_API_KEY"), os.environ.get("OPENAI_BASE_URL")
    if key or url:
        return Upstream(url or _OPENAI, os.environ.get("OPENAI_MODEL", "gpt-4o-mini"), key=key)
    server = SSEServer(answers).start()
    about = {"name": "a scripted upstream", "place": "inside this program", "suggestions": PROMPTS}
    return Upstream(f"{server.url}/v1", "scripted", about=about)


def conversation(body: Any) -> list[Message] | None:
    """Return the messages of a POST's JSON body, None where it has none that can be sent on."""
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        return None
    return [{"role": said["role"], "content": said["content"]} for said in messages]


def _is_message(said: Any) -> bool:
    return isinstance(said, dict) and said.get("role") in ("user", "assistant") and isinstance(said.get("content"), str)


def is_from_elsewhere(site: str | None) -> bool:
    """Whether a page of another site asks, by the header Sec-Fetch-Site: a GET that costs money is not its to make."""
    return site not in (None, "same-origin", "none")


def piece_of(chunk: Any) -> dict[str, Any] | None:
    """Return what the page gets for one chunk; nothing for the first and the last, which have no text.

    A JSON object and not the bare text: an event stream knows one kind of line break only.
    """
    if "restart" in chunk:
        # Of the log's, where another process begins the answer anew.
        return {"restart": True}
    choices = chunk["choices"]
    text = choices[0]["delta"].get("content") if choices else None
    return {"text": text} if text else None


def feed(upstream: Upstream, *, keeps_answers: bool = False) -> Iterator[ServerSentEvent | dict[str, int] | None]:
    """Yield what the panel shows, for as long as someone looks at it.

    None sends nothing. It is where the relay ends this generator once the reader has left.
    """
    # Who knows an answer's key can read it: each page gets what no other can guess, to begin its keys with.
    key = {"key": secrets.token_urlsafe()} if keeps_answers else {}
    # `retry`: when the server is restarted, the panel is back a second later.
    yield ServerSentEvent("about", json.dumps(upstream.about | key), retry=1.0)
    shown = None
    while True:
        counts = upstream.counts()
        yield counts if counts != shown else None
        shown = counts
        time.sleep(0.1)
