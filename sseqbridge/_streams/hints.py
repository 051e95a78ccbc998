"""Hints in the errors of frequent mistakes: the names that other libraries give to what this one names otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NoReturn

__all__ = ["check_names", "no_attribute"]

_CLIENT = "Pass bridge=Bridge(client=lambda: httpx.AsyncClient({}=...))."

# By the name of an unknown option.
_OPTIONS = {
    "allow_redirects": "Pass `follow_redirects`.",
    "api_key": 'Pass `headers`: {"Authorization": "Bearer ..."}.',
    "body": "Pass `data` for a JSON body, `content` for bytes.",
    "bridge": "Pass `client`, an httpx.AsyncClient: a coroutine uses its own event loop.",
    "cert": _CLIENT.format("cert"),
    "client": "Pass bridge=Bridge(client=...), a function that returns an httpx.AsyncClient.",
    "connect": "Pass timeout=Timeout(connect=...).",
    "http2": _CLIENT.format("http2"),
    "idle": "Pass timeout=Timeout(idle=...).",
    "json_data": "Pass `data`, which is sent as JSON.",
    "last_id": "Pass `last_event_id`.",
    "max_retries": "Make an SSEClient(retries=...), or pass `reconnect` for a stream that goes on.",
    "on_error": "Errors are raised where the stream is read.",
    "on_message": "Read the stream with a `for` loop.",
    "payload": "Pass `data` for a JSON body, `content` for bytes.",
    "proxies": _CLIENT.format("proxy") + " HTTPS_PROXY in the environment works, too.",
    "proxy": _CLIENT.format("proxy") + " HTTPS_PROXY in the environment works, too.",
    "query": "Pass `params`.",
    "read": "Pass timeout=Timeout(read=...).",
    "retries": "Make an SSEClient(retries=...), or pass `reconnect` for a stream that goes on.",
    "retry": "Make an SSEClient(retries=...), or pass `reconnect` for a stream that goes on.",
    "stream": 'Every response is a stream. An API\'s own option belongs into the body: data={"stream": True, ...}.',
    "total": "Pass timeout=Timeout(total=...).",
    "transport": "Pass bridge=Bridge(client=...), or to mock it: an SSEServer of sseqbridge.testing.",
    "verify": "Pass bridge=Bridge(client=lambda: httpx.AsyncClient(verify=...)), or set SSL_CERT_FILE.",
}

# By the name of an attribute that a response does not have.
_ATTRIBUTES = {
    "aclose": "Leave `async with response:`, or call `response.events.close()`.",
    "aiter_lines": "Iterate over `response.events`.",
    "close": "Call `response.events.close()`, or use `with response:`.",
    "content": "Read `response.events`; an error's body is its only item.",
    "iter_content": "Iterate over `response.events`.",
    "iter_lines": "Iterate over `response.events`.",
    "iter_sse": "Iterate over `response.events`.",
    "json": "Read `response.events`, whose items are decoded JSON; an error's body is its only item.",
    "next": "Call `next(response.events)`.",
    "ok": "Compare `response.status`.",
    "read": "Call `response.events.collect()`.",
    "reason": "Read `response.status`.",
    "reason_phrase": "Read `response.status`.",
    "status_code": "Read `response.status`.",
    "text": 'Read `response.events`, with decode="text"; an error\'s body is its only item.',
}


def check_names(options: Mapping[str, object], known: Collection[str], function: str) -> None:
    """Raise TypeError, with a hint, for an unknown keyword argument of a function that has those of `known`."""
    for name in options:
        if name not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}. {_hint(name, known)}".rstrip())


def _hint(name: str, known: Collection[str]) -> str:
    if name in _OPTIONS:
        return _OPTIONS[name]
    # Imported here: most programs have no use for it.
    import difflib

    similar = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {similar[0]!r}?" if similar else ""


def no_attribute(kind: str, name: str) -> NoReturn:
    """Raise AttributeError for an attribute that a response, of the class `kind`, does not have."""
    message = f"{kind!r} object has no attribute {name!r}"
    hint = _ATTRIBUTES.get(name)
    raise AttributeError(message if hint is None else f"{message}. {hint}", name=name)
