"""The argument and the result of a caller's `resume` function: the lost request, and the one that continues its stream.

Immutable values; their reprs hold no URL, header or event ID, each of which may be a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sseqbridge._checks import check_method, check_url

if TYPE_CHECKING:
    import httpx

__all__ = ["Attempt", "Resume", "ResumeRule"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """The next attempt to resume a stream, and the request that was lost.

        def resume(attempt):
            return Resume("GET", f"/answers/{answer_id}?after={attempt.last_event_id}")

        request_sse(url, headers, data, reconnect=ReconnectionPolicy(resume=resume))

    The `resume` function of a ReconnectionPolicy receives it.

    `number` counts the consecutive attempts, from 1. `method`, `url` (a str) and `headers` (an httpx.Headers) are
    those of the request whose event stream was lost, after redirects; `headers` lack those that belong to one message
    (Host, Content-Length, Last-Event-ID) and cookies. `last_event_id` is "" if the server has sent none.
    `response_headers` (an httpx.Headers) are those of its response.
    """

    number: int
    method: str
    url: str = field(repr=False)
    headers: httpx.Headers = field(repr=False)
    last_event_id: str = field(repr=False)
    response_headers: httpx.Headers = field(repr=False)


@dataclass(frozen=True, slots=True)
class Resume:
    """The request that continues a stream. It has no body.

        Resume("GET", "/answers/7", headers={"Authorization": f"Bearer {new_token()}"})

    `url` may be relative to that of the lost request. `headers` replace those of the caller; None: they are kept, and
    another origin gets none of them but Accept and Last-Event-ID. Last-Event-ID is added to both, unless `headers`
    contain one. `method` is the name of the HTTP method. The `auth` and `cookies` of the call stay with their origin in
    any case.

    Raises UsageError for a method or URL of a wrong type.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] | Sequence[tuple[str, str]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_method(self.method)
        check_url("url", self.url)


ResumeRule = Literal["repeat", "get"] | Callable[[Attempt], Resume | None] | None
