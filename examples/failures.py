"""Ask an upstream that is busy, silent, stalls, cuts answers off and refuses: `python -m examples.failures`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from examples import endpoint
from sseqbridge import SSEClient, SSEError, StatusError, StreamTimeoutError, Timeout, TruncatedStreamError


def answer(client: SSEClient[Any], question: str) -> Iterator[str]:
    """Yield the answer's text, and a note about how it failed."""
    try:
        data = endpoint.body([{"role": "user", "content": question}])
        for chunk in client.request("chat/completions", data=data).raise_for_status().events:
            yield endpoint.text_of(chunk)
    except StatusError as error:
        yield f"[refused: {error.status}]"
    except StreamTimeoutError as error:
        waited_for = {"read": "answer", "idle": "event"}.get(error.which, error.which)
        yield f"[no {waited_for} for {error.seconds} s]"
    except TruncatedStreamError:
        yield "[cut off]"
    except SSEError as error:  # connection refused or lost, invalid JSON, an error event
        yield f"[{type(error).__name__}]"


def main() -> None:
    from sseqbridge.testing import SSEServer, chat_completions, in_turn, respond, send, silence

    begin = send({"choices": [{"delta": {"content": "Well, "}}]})
    busy = respond(503, {"Retry-After": "0"}, json={"error": {"message": "busy"}})
    stalls = chat_completions("Hello!", stall_after=1)
    is_silent = [silence()]  # before the head of its response
    script = in_turn([busy], chat_completions("Hello!"), is_silent, stalls, [begin], [respond(401)])
    with SSEServer(script) as upstream:
        client = SSEClient(
            upstream.url,
            retries=2,  # only if the request did not reach the server, or the status of its answer allows it
            timeout=Timeout(connect=5, read=2, idle=1, total=300),
            require_done=True,  # an answer without [DONE] is cut off
        )
        for question in ("Are you busy?", "Do you hear me?", "Do you stall?", "Do you finish?", "Do you know me?"):
            print(f"{question:18}", "".join(answer(client, question)))


if __name__ == "__main__":
    main()
