"""Relays in Starlette that end at SIGTERM: under uvicorn, and by `python -m tests.apps.ending PORT` under hypercorn."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator

from starlette.applications import Starlette

from examples.shutdown import end_relays_at_shutdown
from sseqbridge import relay
from tests.apps.starlette_app import app as relays

__all__ = ["app"]


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # uvicorn has installed its own handlers by then.
    end_relays_at_shutdown()
    yield


app = Starlette(routes=relays.routes, lifespan=lifespan)


async def stop() -> None:
    """Wait for SIGTERM, and end all relays, before hypercorn waits for its connections."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    relay.end_all()


if __name__ == "__main__":
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    config.graceful_timeout = 60
    asyncio.run(serve(relays, config, shutdown_trigger=stop))  # type: ignore[arg-type]
