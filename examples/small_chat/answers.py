"""The log in which answers are kept, and the files of the page."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from examples import endpoint
from sseqbridge.resume import Log, MemoryLog

__all__ = ["MODULE", "PAGE", "STYLE", "WAIT", "item_of", "log"]

PAGE = Path(__file__).parent / "page.html"
STYLE = Path(__file__).parent / "static/page.css"
MODULE = str(files("sseqbridge.relay") / "browser/relay.js")

# Seconds that a GET waits for a POST to begin its answer.
WAIT = 1


def _log() -> Log:
    # An answer without a reader is aborted after a minute.
    if url := os.environ.get("REDIS_URL"):
        from sseqbridge.resume import RedisLog  # needs the extra `redis`

        return RedisLog.from_url(url, abandon_after=60)
    return MemoryLog(abandon_after=60)


log = _log()


def item_of(chunk: Any) -> dict[str, str] | None:
    """Return what the page gets for one chunk; None: nothing."""
    text = endpoint.text_of(chunk)
    return {"text": text} if text else None
