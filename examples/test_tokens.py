"""Tests of both ways to renew a token, with a server of its own: `pytest examples/test_tokens.py`."""

from __future__ import annotations

import pytest

from examples.tokens import RenewingAuth, TokenHeaders
from sseqbridge import CallbackError, SSEClient
from sseqbridge.testing import ReceivedRequest, SSEServer, Step, respond, send


class Tokens:
    """A script: issues tokens, and accepts the last one that it has issued. The first call with each token is a 503."""

    def __init__(self) -> None:
        self.issued: list[str] = []
        self.used: list[str] = []

    def __call__(self, request: ReceivedRequest) -> list[Step]:
        if request.path == "/token":
            self.issued.append(f"token-{len(self.issued)}")
            return [respond(json={"access_token": self.issued[-1], "expires_in": 3600})]
        token = request.headers["authorization"].removeprefix("Bearer ")
        if token not in self.issued[-1:]:
            return [respond(401, json={"error": "the token has expired"})]
        self.used.append(token)
        is_busy = self.used.count(token) == 1
        return [respond(503, {"Retry-After": "0"})] if is_busy else [send("Hello"), send("[DONE]")]


def ask(api: SSEClient[str]) -> list[str]:
    return api.request("/chat", data={}).raise_for_status().events.collect()


def test_token_is_renewed_before_it_expires(sse_server: SSEServer) -> None:
    tokens = Tokens()
    sse_server.play(tokens)
    headers = TokenHeaders(f"{sse_server.url}/token")
    api = SSEClient(sse_server.url, headers=headers, decode="text", retries=2)
    assert ask(api) == ask(api) == ["Hello"]
    assert tokens.used == ["token-0"] * 3  # the retry and the second call use the same token
    headers.renew_at = 0.0  # as when its time is nearly over
    assert ask(api) == ["Hello"]
    assert tokens.used[3:] == ["token-1"] * 2


def test_token_that_was_refused_is_renewed(sse_server: SSEServer) -> None:
    tokens = Tokens()
    sse_server.play(tokens)
    api = SSEClient(sse_server.url, auth=RenewingAuth(f"{sse_server.url}/token"), decode="text", retries=2)
    assert ask(api) == ["Hello"]
    tokens.issued.append("token-1")  # the server has replaced the token
    assert ask(api) == ["Hello"]
    assert tokens.used == ["token-0"] * 2 + ["token-2"] * 2


def test_token_that_is_not_issued_is_an_error(sse_server: SSEServer) -> None:
    sse_server.play([respond(500)])
    api = SSEClient(sse_server.url, headers=TokenHeaders(f"{sse_server.url}/token"), decode="text", retries=2)
    with pytest.raises(CallbackError):
        ask(api)
