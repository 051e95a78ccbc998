"""hypercorn as an upstream that speaks HTTP/2."""

from __future__ import annotations

import asyncio
import queue
import socket
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import hypercorn.asyncio
import hypercorn.config

from tests.support import in_thread

__all__ = ["Http2Server"]


class Http2Server:
    """hypercorn, serving HTTP/2 over TLS; `peers` and `left` record connections and disconnects."""

    def __init__(self, certificate: Path) -> None:
        self.peers: list[tuple[str, int]] = []
        self.left: queue.Queue[str] = queue.Queue()
        self._certificate = str(certificate)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self.url = f"https://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Http2Server:
        self._served = in_thread(lambda: asyncio.run(self._serve()), "hypercorn")
        self._loop, self._closing = self._ready.result(30)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._served.result(30)

    async def _serve(self) -> None:
        config = hypercorn.config.Config()
        config.bind = [f"fd://{self._socket.detach()}"]
        config.certfile = config.keyfile = self._certificate
        config.graceful_timeout = 1.0
        config.loglevel = "WARNING"
        closing = asyncio.Event()
        self._ready.set_result((asyncio.get_running_loop(), closing))
        await hypercorn.asyncio.serve(self._respond, config, shutdown_trigger=closing.wait)

    async def _respond(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        assert scope["http_version"] == "2"
        self.peers.append(scope["client"])
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/mute":
            assert (await receive())["type"] == "http.disconnect"
            self.left.put(scope["path"])
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        if scope["path"] == "/silent":
            assert (await receive())["type"] == "http.disconnect"
            self.left.put(scope["path"])
        else:
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
