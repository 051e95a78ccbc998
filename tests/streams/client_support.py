"""The four ways of sending a request with an SSEClient, as one interface."""

from __future__ import annotations

from typing import Any

from sseqbridge import SSEClient
from tests.requesters import Caller, Response

__all__ = ["WAYS", "ClientRequester"]

WAYS = ["request", "arequest", "call", "asend"]


class ClientRequester(Caller):
    """Sends requests with a client, in one of four ways."""

    def __init__(self, way: str) -> None:
        super().__init__(is_async=way in ("arequest", "asend"))
        self.way = way

    def __call__(self, client: SSEClient[Any], url: Any, *args: Any, **options: Any) -> Response:
        if self.way in ("request", "arequest"):
            return self._response(getattr(client, self.way)(url, *args, **options))
        call = client.call(url, *args, **options)
        return self._response(call() if self.way == "call" else call.asend())

    def _response(self, result: Any) -> Response:
        return Response(self, self.run(result))
