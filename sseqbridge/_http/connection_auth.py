"""Authentication of connections: NTLM and Negotiate authenticate the connection, and not each request on it.

A later request on such a connection has the identity of the earlier one, so no other call may use it
(RFC 4559, section 6). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["authenticates_connection"]

_SCHEMES = re.compile(rb"[ \t]*(?:ntlm|negotiate)(?![^ \t])", re.IGNORECASE)


def authenticates_connection(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request with these headers authenticates its connection."""
    return any(
        name.lower() in (b"authorization", b"proxy-authorization") and _SCHEMES.match(value) is not None
        for name, value in headers
    )
