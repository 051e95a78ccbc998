"""Answer 200 prompts, eight at a time. After Ctrl-C, or a crash, the next run asks for the missing answers alone.

    pip install tqdm
    python -m examples.prompts [answers.jsonl]

The endpoint is that of the environment (examples/endpoint.py).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from examples import endpoint
from sseqbridge import SSEError, Timeout, gather

PROMPTS = {f"prompt-{number}": f"Say the number {number}." for number in range(1, 201)}


def saved_in(path: Path) -> dict[str, str]:
    """Return the answers of earlier runs. A crash can leave an incomplete last line, which is removed."""
    path.touch()
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        os.truncate(path, len(complete))  # Nothing is written again: a crash here would lose it.
    return {answer["name"]: answer["text"] for answer in map(json.loads, complete.splitlines())}


def main(path: Path) -> str:
    """Save the answers, one line of JSON each, and return a summary."""
    saved = saved_in(path)
    client = endpoint.client(retries=4, timeout=Timeout(read=60, idle=60), require_done=True)
    calls = {
        name: client.call("chat/completions", data=endpoint.body([{"role": "user", "content": prompt}]))
        for name, prompt in PROMPTS.items()
        if name not in saved
    }
    failed = 0
    with path.open("a", encoding="utf-8") as file:
        for name, chunks in gather(calls, limit=8, in_order=False, errors="yield", progress=True):
            if isinstance(chunks, SSEError):
                failed += 1
                print(f"{name}: {chunks}", file=sys.stderr)
                continue
            text = "".join(map(endpoint.text_of, chunks))
            file.write(json.dumps({"name": name, "text": text}) + "\n")
            file.flush()
    return f"{len(calls) - failed} answers saved, {failed} failed."


if __name__ == "__main__":
    try:
        print(main(Path(sys.argv[1] if len(sys.argv) > 1 else "answers.jsonl")))
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run it again for the rest.")
