"""An upstream with scripted answers, which shows the page in every state without an account at a provider.

Each event has an id, and the upstream accepts Last-Event-ID. An answer depends on the question alone, so that another
process can continue it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sseqbridge.testing import ReceivedRequest, Step, cut, raw, respond, send, silence, wait

__all__ = ["PROMPTS", "answers"]

_PACE = 0.035

_STOP = "What happens when I press Stop?"
_LONG = "Tell me something long"
_SILENT = "Say nothing at all"
_BROKEN = "Break off in mid-sentence"
_ERROR = "Run into an error"
_REFUSED = "Refuse to answer"

PROMPTS = [
    {"label": _STOP, "prompt": _STOP},
    {"label": _LONG, "prompt": _LONG, "hint": "stop it, or restart the server during the answer"},
    {"label": _SILENT, "prompt": _SILENT, "hint": "stop it, too"},
    {"label": _BROKEN, "prompt": _BROKEN},
    {"label": _ERROR, "prompt": _ERROR},
    {"label": _REFUSED, "prompt": _REFUSED},
]

_ON_STOP = """\
Your browser closes its connection to the web server. The relay there notices: at once when it has something to \
send, within a second when it has not. It closes the event stream that it reads from, and with that the request \
to me is aborted. I see the end of the connection about a millisecond later and say no more.

Nobody computes, or pays for, tokens that nobody reads. The panel shows it: one open request less.

Closing the tab does the same. So does losing the network.
"""

_ABOUT_STREAMS = """\
Server-Sent Events are lines of text over plain HTTP. Each piece of this answer is one of them: a few fields, a \
blank line, and the next. There is no framing to negotiate and nothing to upgrade, so whatever passes HTTP on passes \
this on as well, as long as it does not wait for the end before it does so.

An event may carry an id. A browser's EventSource remembers the last one it saw, and when the connection breaks it \
asks again with the header Last-Event-ID. You can try it: choose EventSource below, ask this again, and restart the \
web server while I talk. The page reconnects, the id goes through the new server to me, and I go on with the next \
word. None is missing and none comes twice.

With a POST there is no such rule. A request with a body is not sent again by itself, because a prompt should not be \
paid for twice in silence. What it has instead are headers and a body: a token against forged requests, the whole \
conversation rather than one question, and words for what went wrong when the server refuses.

Between the two of us sits a synchronous web application. Its view calls request_sse, which returns as soon as my \
headers are in, and hands the stream to the relay. One background thread reads all upstreams at once; the view's \
own thread sleeps until there is something to send. When you are slow to read, the relay stops reading from me and I \
have to wait: memory stays bounded. When I am silent, a comment goes out every fifteen seconds, so that no proxy on \
the way takes the connection for dead.

That was the long answer. It has an end, and the end is an event of its own, so that nobody takes half of it for the \
whole.
"""

_ON_OTHERS = """\
You said: \N{LEFT DOUBLE QUOTATION MARK}{prompt}\N{RIGHT DOUBLE QUOTATION MARK}

I am a script inside this program, so that is as far as my understanding goes. Set OPENAI_API_KEY, or OPENAI_BASE_URL \
for another endpoint of that kind, and start the program again: then a model answers here.
"""

_HALF = "This sentence was going to explain what a reader sees when the connection to the upstream breaks, but"

_FAILING = "So far all is well, and the status was 200. An error that comes later can only be sent as an event: "


def answers(request: ReceivedRequest) -> Iterator[Step]:
    """Answer a chat completion request by its last message."""
    prompt = request.json()["messages"][-1]["content"]
    if prompt == _REFUSED:
        yield respond(429, {"Retry-After": "20"}, framing="length", content_type="application/json")
        yield raw(b'{"error": {"message": "You ask faster than I am willing to answer. Try again in 20 seconds."}}')
        return
    yield respond()
    if prompt == _SILENT:
        yield silence()
    texts = {_STOP: _ON_STOP, _LONG: _ABOUT_STREAMS, _BROKEN: _HALF, _ERROR: _FAILING}
    text = texts.get(prompt) or _ON_OTHERS.format(prompt=prompt)
    seen = request.headers.get("last-event-id", "")
    yield from _chunks(text.strip(), int(seen) if seen.isdecimal() else 0)
    if prompt == _BROKEN:
        yield cut()
    if prompt == _ERROR:
        yield send({"error": {"message": "The model has run out of words.", "type": "server_error"}})
    yield send("[DONE]")


def _chunks(text: str, seen: int) -> Iterator[Step]:
    for number, token in enumerate(re.findall(r"\S+\s*", text), 1):
        if number > seen:
            yield wait(_PACE)
            chunk = {"choices": [{"index": 0, "delta": {"content": token}}]}
            # A client that loses the connection reconnects after a second.
            yield send(chunk, id=str(number), retry=1.0 if number == seen + 1 else None)
