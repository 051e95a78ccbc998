"""Errors that an upstream reports in a body or an event: recognizing them, and quoting their messages.

Pure functions. Invariant: a quotation is one line without control characters, so that no upstream can forge a line of
a log or send escape sequences to a terminal, and is short enough for a log.
"""

from __future__ import annotations

import json
from typing import Any

from sseqbridge._exceptions import ProtocolError, SSEError, UpstreamError

from .events import ServerSentEvent

__all__ = [
    "MAX_QUOTED",
    "escaped",
    "is_error",
    "message_of",
    "quoted",
    "unframed_body_error",
    "unframed_end_error",
    "upstream_error",
]

# How many characters of an upstream's message are quoted.
MAX_QUOTED = 200
# How many characters of a body are quoted that is no event stream.
_MAX_QUOTED_BODY = 500

# The members that hold the message in the error objects of providers and frameworks, the more specific ones first.
# Sources: RFC 6749, section 5.2 (error_description); RFC 9457, section 3 (detail, title)
_MESSAGE_MEMBERS = (
    *("error_description", "error", "message", "detail", "msg", "errors"),
    # AWS, Baidu, Apigee.
    *("Message", "errorMessage", "error_message", "error_msg", "fault", "faultstring"),
    "title",
)
# How deeply a message may be nested: {"error": {"error": {"message": ...}}}.
_MAX_DEPTH = 5


def quoted(text: str, limit: int = MAX_QUOTED) -> str:
    """Return the begin of a text for a message, with control characters and line breaks replaced by spaces."""
    return "".join(character if character.isprintable() else " " for character in text[:limit])


def escaped(text: str, limit: int = MAX_QUOTED) -> str:
    """Return the begin of a text in quotes for a message, with control characters and line breaks escaped."""
    begin = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text[:limit].replace("\\", "\\\\")
    )
    return f'"{begin}"' if len(text) <= limit else f'"{begin}"... ({len(text)} characters)'


def is_error(value: object) -> bool:
    """Whether an event's JSON is an error object: one with a member "error" that is not empty.

    In JSON-RPC "error" is a member of an ordinary response.
    """
    return isinstance(value, dict) and "jsonrpc" not in value and _has_error(value)


def _has_error(value: dict[str, Any]) -> bool:
    error = value.get("error")
    if isinstance(error, str):
        return bool(error.strip())
    # Some servers send the member with each event, without content: {"message": null}.
    return isinstance(error, dict) and any(error.values())


def message_of(payload: object, depth: int = 0) -> str | None:
    """Return the message in an error's payload, or None if there is none."""
    if isinstance(payload, str):
        return payload if payload.strip() else None
    if isinstance(payload, list):
        return message_of(payload[0], depth + 1) if payload and depth < _MAX_DEPTH else None
    if isinstance(payload, dict) and depth < _MAX_DEPTH:
        if (both := _code_and_message(payload)) is not None:
            return both
        for member in _MESSAGE_MEMBERS:
            message = message_of(payload.get(member), depth + 1)
            if message is not None:
                return message
    return None


def _code_and_message(payload: dict[str, Any]) -> str | None:
    """Return the members "error" and "message" of LangGraph, Spring and others; None unless both are texts.

    "error" is then a code or the type of an exception: {"error": "ValueError", "message": "no such node"}.
    """
    code, message = payload.get("error"), payload.get("message")
    if isinstance(message, list) and message:
        # The messages of a validation, as of NestJS.
        message = message[0]
    if not (isinstance(code, str) and isinstance(message, str)) or "error_description" in payload:
        return None
    code, message = code.strip(), message.strip()
    if not (code and message):
        return None
    return message if code in message else f"{code}: {message}"


def upstream_error(payload: object, event: ServerSentEvent | None) -> UpstreamError:
    """Return the error for a payload that the upstream sent; `event` is None if no event held it."""
    message = message_of(payload)
    detail = "; it is in .payload" if message is None else f": {quoted(message.strip())}"
    return UpstreamError(f"the upstream sent an error{detail}", event, payload)


def unframed_body_error(body: bytes) -> SSEError:
    """Return the error for the body of an event stream that has no field of the format and no comment.

    It is an UpstreamError for a JSON error object, else a ProtocolError that quotes the begin of the body.
    """
    text = body.decode("utf-8-sig", "replace").strip()
    return _error_in(text) or ProtocolError(
        "the response's body is no event stream, since it has no field of that format and no comment: "
        f'"{quoted(text, _MAX_QUOTED_BODY)}"'
    )


def unframed_end_error(body: bytes | bytearray) -> UpstreamError | None:
    """Return the error if an event stream's body ends with a JSON error object in place of an event; else None.

    `body` is the part behind the last event and a little more, which may begin within a line of that event.
    """
    end = bytes(body.rstrip())
    # Most bodies: the last line is one of an event.
    last = end[max(end.rfind(b"\n"), end.rfind(b"\r")) + 1 :]
    if last[-1:] not in (b"}", b"]") or _is_field(last):
        return None
    lines = end.splitlines()
    # Behind the last field, or else behind the first blank line.
    begin = next((number for number in range(len(lines), 0, -1) if _is_field(lines[number - 1])), 0)
    if not begin:
        begin = lines.index(b"") if b"" in lines else len(lines)
    return _error_in(b"\n".join(lines[begin:]).decode("utf-8", "replace").strip())


def _is_field(line: bytes) -> bool:
    """Whether a line of an event stream is a field of the format, or a comment."""
    name, colon, _ = line.partition(b":")
    return name in (b"data", b"event", b"id", b"retry") or bool(colon and not name)


def _error_in(text: str) -> UpstreamError | None:
    """Return the error if a text is a JSON error object, or the line "error: " with a JSON object."""
    is_labelled = text.startswith("error:")
    labelled = text.removeprefix("error:")
    for candidate in (labelled, labelled.partition("\n")[0]) if is_labelled else (text,):
        payload = _error_object(candidate, is_labelled=is_labelled)
        if payload is not None:
            return upstream_error(payload, None)
    return None


def _error_object(text: str, *, is_labelled: bool) -> Any:
    """Return the JSON error object in a text, None if it is something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    # Gemini reports an error as a list of one object.
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict):
        return None
    is_typed = first.get("type") == "error" or first.get("object") == "error"
    # In place of events, an error may also be true, a code, or a list: {"error": 500, "message": "..."}.
    has_other = isinstance(first.get("error"), (int, list)) and bool(first["error"])
    return value if is_labelled or is_typed or has_other or _has_error(first) else None
