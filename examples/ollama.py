"""Chat with Ollama, which sends JSON Lines: `python -m examples.ollama "Why is the sky blue?"`.

OLLAMA_HOST is its address (default: http://localhost:11434), OLLAMA_MODEL the model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from sseqbridge import SSEError, Timeout, request_jsonl

HOST = os.environ.get("OLLAMA_HOST", "http://localhost:11434")


def answer(prompt: str) -> Iterator[str]:
    data = {
        "model": os.environ.get("OLLAMA_MODEL", "llama3.2"),
        "messages": [{"role": "user", "content": prompt}],
    }
    chunks = request_jsonl(
        f"{HOST}/api/chat",
        data=data,
        done=lambda event: event.json().get("done"),  # the last line has `"done": true`
        require_done=True,
        # `read` limits the wait for the response's head: the model may have to be loaded first. `idle` limits the time
        # from the head, or a line, to the next line.
        timeout=Timeout(read=300, idle=60),
    )
    for chunk in chunks.raise_for_status().events:
        yield chunk["message"]["content"]


if __name__ == "__main__":
    try:
        for text in answer(" ".join(sys.argv[1:])):
            print(text, end="", flush=True)
    except SSEError as error:
        sys.exit(f"\n{type(error).__name__}: {error}")
    print()
