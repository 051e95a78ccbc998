"""Third-party upstreams: sse-starlette's EventSourceResponse and FastAPI's StreamingResponse."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import fastapi
from fastapi.responses import StreamingResponse
from sse_starlette.sse import EventSourceResponse

app = fastapi.FastAPI()

# The time.monotonic() of each stream's disconnect, by the name in its query.
_left: dict[str, float] = {}


@app.get("/plain")
async def plain() -> str:
    return "plain"


@app.get("/sse-starlette")
async def by_sse_starlette(name: str) -> EventSourceResponse:
    async def events() -> AsyncIterator[dict[str, Any]]:
        try:
            for n in range(3):
                yield {"data": json.dumps({"n": n}), "event": "count", "id": str(n)}
            await asyncio.Event().wait()
        finally:
            _left[name] = time.monotonic()

    return EventSourceResponse(events(), ping=1)


@app.get("/fastapi")
async def by_fastapi(name: str) -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        try:
            for n in range(3):
                yield f"event: count\nid: {n}\ndata: {json.dumps({'n': n})}\n\n"
            await asyncio.Event().wait()
        finally:
            _left[name] = time.monotonic()

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/left")
async def left(name: str) -> float | None:
    return _left.get(name)
