"""The views in FastAPI. In Starlette the calls of `stream_response` are the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

from fastapi import FastAPI, Header
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel

from examples import endpoint
from examples.shutdown import end_relays_at_shutdown
from examples.small_chat.answers import MODULE, PAGE, STYLE, WAIT, item_of, log
from sseqbridge import StreamNotFoundError, relay


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    end_relays_at_shutdown()
    yield


app = FastAPI(lifespan=lifespan)
relay.starlette.register_error_handlers(app)  # an upstream that cannot be reached: 502 or 504

LastEventID = Annotated[str | None, Header(alias="Last-Event-ID")]


class Question(BaseModel):
    question: str


@app.post("/answers/{key}")
async def ask(key: str, body: Question, last_event_id: LastEventID = None) -> Response:
    """Begin an answer. The request goes on when the client leaves."""
    start = partial(endpoint.aask, [{"role": "user", "content": body.question}])
    events = await log.aopen(key, start, last_event_id=last_event_id, takeover=True)
    return relay.starlette.stream_response(events, map=item_of)


@app.get("/answers/{key}")
async def answer(key: str, last_event_id: LastEventID = None) -> Response:
    """Read an answer from its beginning, or after the event that the client has seen."""
    opens = partial(log.aopen, key, last_event_id=last_event_id, wait=WAIT)
    return relay.starlette.stream_response(opens, map=item_of)


@app.delete("/answers/{key}")
async def stop(key: str) -> Response:
    """End an answer, and its upstream request, for all its readers; 404 if it is not running."""
    return Response(status_code=204 if await log.acancel(key) else 404)


@app.get("/")
async def page() -> Response:
    return FileResponse(PAGE)


@app.get("/relay.js")
async def module() -> Response:
    return FileResponse(MODULE, media_type="text/javascript")


@app.get("/page.css")
async def style() -> Response:
    return FileResponse(STYLE)


@app.exception_handler(StreamNotFoundError)
async def unknown(request: object, error: StreamNotFoundError) -> Response:
    return JSONResponse({"error": "There is no such answer."}, 404)
