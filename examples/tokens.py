"""Two ways to renew a token: before it expires, and after the server has refused it."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import httpx

__all__ = ["RenewingAuth", "TokenHeaders"]

GRANT = {"grant_type": "client_credentials"}


class TokenHeaders:
    """Returns headers with a token that does not expire soon."""

    def __init__(self, token_url: str) -> None:
        self.token_url = token_url
        self.lock = threading.Lock()
        self.token, self.renew_at = "", 0.0

    def __call__(self) -> dict[str, str]:
        with self.lock:
            if time.monotonic() >= self.renew_at:
                answer = httpx.post(self.token_url, data=GRANT).raise_for_status().json()
                self.token, seconds = answer["access_token"], answer["expires_in"]
                self.renew_at = time.monotonic() + seconds - min(60, seconds / 4)
            return {"Authorization": f"Bearer {self.token}"}


class RenewingAuth(httpx.Auth):
    """Sends a token, and renews it when the server answers 401."""

    requires_response_body = True  # of the answer with the token; that of an event stream is seen as empty

    def __init__(self, token_url: str) -> None:
        self.token_url = token_url
        self.token = "none yet"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        sent = self.token
        request.headers["Authorization"] = f"Bearer {sent}"
        response = yield request
        if response.status_code == 401:
            if self.token == sent:  # unless another request has renewed it in the meantime
                answer = yield httpx.Request("POST", self.token_url, data=GRANT)
                self.token = answer.json()["access_token"]
            request.headers["Authorization"] = f"Bearer {self.token}"
            yield request
