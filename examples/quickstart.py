"""Send a prompt to an OpenAI-style endpoint, print the answer as it arrives, then ask again and leave early.

    python examples/quickstart.py

Without OPENAI_API_KEY in the environment it starts an upstream of its own on a loopback port. With the
key it sends requests to OPENAI_BASE_URL (default: https://api.openai.com/v1) for OPENAI_MODEL.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from sseqbridge import request_sse
from sseqbridge.testing import SSEServer, chat_completions

ANSWER = (
    "Server-Sent Events are lines of text over plain HTTP, and each token of this answer "
    "came as one of them. A background thread read the socket, and this loop only the queue."
)


def ask(url: str, headers: dict[str, str], prompt: str) -> Iterator[str]:
    """Yield the answer's tokens. Leaving the loop over them aborts the request."""
    data = {
        "model": os.environ.get("OPENAI_MODEL", "gpt-4o-mini"),
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
    }
    response = request_sse(f"{url}/chat/completions", headers, data).raise_for_status()
    with response as (_, _, chunks):
        for chunk in chunks:
            yield token_of(chunk)


def token_of(chunk: Any) -> str:
    """Return the text of one chunk; "" for the first and the last."""
    choices = chunk["choices"]
    return (choices[0]["delta"].get("content") or "") if choices else ""


def talk(url: str, headers: dict[str, str]) -> float:
    """Print one answer and the beginning of a second. Returns the time at which the second loop was left."""
    print("> What are Server-Sent Events?")
    for token in ask(url, headers, "What are Server-Sent Events?"):
        print(token, end="", flush=True)
    print("\n\n> Again, but we leave after ten tokens.")
    left_at = time.monotonic()
    for count, token in enumerate(ask(url, headers, "What are Server-Sent Events?")):
        print(token, end="", flush=True)
        if count == 10:
            left_at = time.monotonic()
            break
    print(" ...")
    return left_at


def main() -> None:
    """Use the endpoint from the environment, or a local upstream."""
    key = os.environ.get("OPENAI_API_KEY")
    if key:
        talk(os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"), {"Authorization": f"Bearer {key}"})
        return
    with SSEServer(chat_completions(ANSWER, delay=0.03)) as upstream:
        left_at = talk(f"{upstream.url}/v1", {"Authorization": "Bearer not-needed-here"})
        aborted_at = upstream.requests[-1].wait_aborted()
        print(f"\nThe upstream saw that request aborted {(aborted_at - left_at) * 1000:.1f} ms after the break.")


if __name__ == "__main__":
    main()
