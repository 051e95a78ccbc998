"""A WSGI application that has read a stream before its server forks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from sseqbridge import request_sse

UPSTREAM = os.environ["SSEQBRIDGE_TESTS_UPSTREAM"]
LOADED_IN = os.getpid()
AT_IMPORT = list(request_sse(UPSTREAM).events)


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    """Answer /read with the items of a stream read now and of one read at import, /plain with nothing."""
    found: dict[str, Any] = {}
    if environ["PATH_INFO"] == "/read":
        items = list(request_sse(UPSTREAM).events)
        found = {"items": items, "at_import": AT_IMPORT, "is_child": os.getpid() != LOADED_IN}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found).encode()]
