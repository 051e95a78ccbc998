"""Hints in the errors of frequent mistakes: names of options and methods that are those of other libraries."""

from __future__ import annotations

import opcode
import sys
from collections.abc import Collection, Mapping
from typing import NoReturn

from sseqbridge import _signatures

__all__ = ["check_names", "no_attribute", "no_attribute_of_client", "refuse_loop"]

_CLIENT = "Pass bridge=Bridge(client=lambda: httpx.AsyncClient({}=...))."

_LOOP = "Read the stream with a `for` loop."
_IN_BODY = "Put the API's own options into the body: data={{{!r}: ...}}."
_RETRIES = "Make an SSEClient(retries=...), or pass `reconnect` for a stream that goes on."
_AUTHORIZATION = 'Pass `headers`: {"Authorization": "Bearer ..."}.'

# By the name of an unknown option.
OPTIONS = {
    "allow_redirects": "Pass `follow_redirects`.",
    "auth_token": _AUTHORIZATION,
    "api_key": _AUTHORIZATION,
    "backoff": "Pass reconnect=ReconnectionPolicy(...).",
    "backoff_factor": "Pass reconnect=ReconnectionPolicy(factor=...).",
    "base_url": "Make an SSEClient(base_url).",
    "body": "Pass `data` for a JSON body, `content` for bytes.",
    "bridge": "Pass `client`, an httpx.AsyncClient: a coroutine uses its own event loop.",
    "callback": _LOOP,
    "cert": _CLIENT.format("cert"),
    "chunk_size": "Events arrive whole: read them with a `for` loop.",
    "client": "Pass bridge=Bridge(client=...), a function that returns an httpx.AsyncClient.",
    "connect_timeout": "Pass timeout=Timeout(connect=...).",
    "connect": "Pass timeout=Timeout(connect=...).",
    "default_headers": "Pass `headers`.",
    "encoding": "An event stream is UTF-8 by definition.",
    "format": "Make an SSEClient(format=...), or call request_jsonl.",
    "http2": _CLIENT.format("http2"),
    "http_client": "Pass bridge=Bridge(client=...), a function that returns an httpx.AsyncClient.",
    "idle_timeout": "Pass timeout=Timeout(idle=...).",
    "idle": "Pass timeout=Timeout(idle=...).",
    "json_data": "Pass `data`, which is sent as JSON.",
    "last_id": "Pass `last_event_id`.",
    "limits": _CLIENT.format("limits"),
    "loop": "A coroutine uses its own event loop: await arequest_sse.",
    "max_retries": _RETRIES,
    "max_tokens": _IN_BODY.format("max_tokens"),
    "messages": _IN_BODY.format("messages"),
    "model": _IN_BODY.format("model"),
    "on_close": "The loop over the stream ends with the stream; `outcome` says how.",
    "on_error": "Errors are raised where the stream is read.",
    "on_event": _LOOP,
    "on_message": _LOOP,
    "on_open": "request_sse returns once the response's headers have arrived.",
    "payload": "Pass `data` for a JSON body, `content` for bytes.",
    "proxies": _CLIENT.format("proxy") + " HTTPS_PROXY in the environment works, too.",
    "proxy": _CLIENT.format("proxy") + " HTTPS_PROXY in the environment works, too.",
    "query": "Pass `params`.",
    "raise_for_status": "Call `response.raise_for_status()`.",
    "read": "Pass timeout=Timeout(read=...).",
    "read_timeout": "Pass timeout=Timeout(read=...).",
    "retries": _RETRIES,
    "retry": _RETRIES,
    "session": "Make an SSEClient for options that several requests share.",
    "ssl": "Pass bridge=Bridge(client=lambda: httpx.AsyncClient(verify=...)), or set SSL_CERT_FILE.",
    "stream": 'Every response is a stream. An API\'s own option belongs into the body: data={"stream": True, ...}.',
    "temperature": _IN_BODY.format("temperature"),
    "token": _AUTHORIZATION,
    "total": "Pass timeout=Timeout(total=...).",
    "transport": "Pass bridge=Bridge(client=...), or to mock it: an SSEServer of sseqbridge.testing.",
    "trust_env": _CLIENT.format("trust_env"),
    "user_agent": 'Pass `headers`: {"User-Agent": ...}.',
    "verify": "Pass bridge=Bridge(client=lambda: httpx.AsyncClient(verify=...)), or set SSL_CERT_FILE.",
}

_ITERATE = "Iterate over `{0}`."
_DECODED = "Read `{0}`, whose items are decoded JSON; an error's body is its only item."

# By the name of an attribute that a response, or its stream, does not have. {0} is the stream,
# {1} the method that ends it, {2} what has the status.
_ATTRIBUTES = {
    "aiter_lines": _ITERATE,
    "aiter_sse": _ITERATE,
    "aiter_text": _ITERATE,
    "cancel": "Call `{0}.{1}()`.",
    "close": "Call `{0}.{1}()`.",
    "aclose": "Call `{0}.{1}()`.",
    "content": "Read `{0}`; an error's body is its only item.",
    "data": _DECODED,
    "is_success": "Compare `{2}.status`.",
    "iter_bytes": _ITERATE,
    "iter_content": _ITERATE,
    "iter_events": _ITERATE,
    "iter_lines": _ITERATE,
    "iter_sse": _ITERATE,
    "iter_text": _ITERATE,
    "json": _DECODED,
    "next": "Call `{0}.next()`.",
    "ok": "Compare `{2}.status`.",
    "read": "Call `{0}.collect()`.",
    "reason": "Read `{2}.status`.",
    "reason_phrase": "Read `{2}.status`.",
    "status_code": "Read `{2}.status`.",
    "stop": "Call `{0}.{1}()`.",
    "text": 'Read `{0}`, with decode="text"; an error\'s body is its only item.',
}

# By the name of an attribute that a client does not have.
_OF_CLIENTS = {
    "aclose": "It has nothing to close: its requests run on the process's bridge.",
    "close": "It has nothing to close: its requests run on the process's bridge.",
    "get": "Call `client.request(url)`.",
    "post": "Call `client.request(url, data=...)`.",
    "put": 'Call `client.request(url, data=..., method="PUT")`.',
    "send": "Call `client.request(url, data=...)`.",
    "stream": "Call `client.request(url, data=...)`.",
}

_GET_ITER = opcode.opmap["GET_ITER"]


def check_names(options: Mapping[str, object], known: Collection[str], function: str) -> None:
    """Raise TypeError, with a hint, for an unknown keyword argument of a function that has those of `known`."""
    _signatures.check_names(options, known, function, OPTIONS)


def no_attribute(kind: type, name: str, stream: str, kind_of_stream: type) -> NoReturn:
    """Raise AttributeError for an attribute that a response or stream of the class `kind` does not have.

    `stream` is the name of the stream in messages.
    """
    message = f"{kind.__name__!r} object has no attribute {name!r}"
    if name in _ATTRIBUTES:
        close = "aclose" if hasattr(kind_of_stream, "aclose") else "close"
        message += f". {_ATTRIBUTES[name].format(stream, close, stream.partition('.')[0])}"
    elif not name.startswith("_") and hasattr(kind_of_stream, name):
        message += f". The stream has it: `{stream}.{name}`."
    raise AttributeError(message, name=name)


def no_attribute_of_client(kind: type, name: str) -> NoReturn:
    """Raise AttributeError for an attribute that a client of the class `kind` does not have."""
    message = f"{kind.__name__!r} object has no attribute {name!r}"
    raise AttributeError(f"{message}. {_OF_CLIENTS[name]}" if name in _OF_CLIENTS else message, name=name)


def refuse_loop(kind: type, loop: str) -> None:
    """Raise TypeError if the caller's caller loops over a response, the tuple, instead of over its stream.

    Both a loop and an unpacking call `__iter__`; they differ in the instruction of the caller. `loop` is the right one.
    """
    caller = sys._getframe(2)
    if caller.f_code.co_code[caller.f_lasti] == _GET_ITER:
        raise TypeError(f"{kind.__name__!r} is the tuple (status, headers, events). Loop over its stream: `{loop}`.")
