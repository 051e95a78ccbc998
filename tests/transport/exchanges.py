"""The exchange behind a response of a BridgeTransport, for tests of what happens at its end."""

from __future__ import annotations

from typing import Any

__all__ = ["exchange_of"]


def exchange_of(response: Any) -> Any:
    """Return the RawExchange of a response, also of one whose stream a client has wrapped."""
    return getattr(response.stream, "_stream", response.stream)._exchange
