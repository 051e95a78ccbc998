"""Relays in Starlette, and under /fastapi in FastAPI."""

from __future__ import annotations

from functools import partial

import fastapi
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from sseqbridge import arequest_sse, relay, request_sse
from tests.apps import GENERATORS, LARGE, relay_options


async def plain(request: Request) -> Response:
    return PlainTextResponse(LARGE)


async def stream(request: Request) -> Response:
    query = request.query_params
    return relay.starlette.stream_response(await arequest_sse(query["upstream"]), **relay_options(query))


def stream_from_thread(request: Request) -> Response:
    query = request.query_params
    return relay.starlette.stream_response(request_sse(query["upstream"]), **relay_options(query))


async def function(request: Request) -> Response:
    query = request.query_params
    return relay.starlette.stream_response(partial(request_sse, query["upstream"]), **relay_options(query))


async def afunction(request: Request) -> Response:
    query = request.query_params
    return relay.starlette.stream_response(partial(arequest_sse, query["upstream"]), **relay_options(query))


async def generated(request: Request) -> Response:
    query = request.query_params
    make = GENERATORS[request.path_params["name"]]
    return relay.starlette.stream_response(make(query), **relay_options(query))


api = fastapi.FastAPI()


@api.get("/relay")
async def relay_of_fastapi(request: fastapi.Request, upstream: str) -> Response:
    return relay.starlette.stream_response(await arequest_sse(upstream), **relay_options(request.query_params))


app = Starlette(
    routes=[
        Route("/plain", plain),
        Route("/relay", stream),
        Route("/threaded", stream_from_thread),
        Route("/function", function),
        Route("/afunction", afunction),
        Mount("/fastapi", api),
        Route("/{name}", generated),
    ]
)
