"""SSEServer, a scripted SSE server on loopback sockets, for tests of code that reads event streams.

    with SSEServer([send({"n": 1}), send("[DONE]")]) as server:
        status, headers, events = request_sse(server.url)

A script is a list of steps (`send`, `wait`, `cut`, ...), or a function that returns or generates them for each request.
`Script` and `Step` are the types, for annotations. This module holds the public names and nothing else.
"""

# Modules: `_server.py` is the server. `_steps.py` has the steps of a script, `_player.py` plays them on a
# `_connection.py`. `_openai.py` and `_anthropic.py` answer like these APIs (`_answers.py`).

from __future__ import annotations

from ._anthropic import anthropic_messages
from ._openai import chat_completions, openai_responses
from ._server import SSEServer
from ._steps import (
    ReceivedRequest,
    Script,
    Step,
    comment,
    cut,
    expect,
    hold,
    in_turn,
    raw,
    recording,
    reset,
    respond,
    send,
    silence,
    wait,
    wire,
)

__all__ = [
    "ReceivedRequest",
    "SSEServer",
    "Script",
    "Step",
    "anthropic_messages",
    "chat_completions",
    "comment",
    "cut",
    "expect",
    "hold",
    "in_turn",
    "openai_responses",
    "raw",
    "recording",
    "reset",
    "respond",
    "send",
    "silence",
    "wait",
    "wire",
]
