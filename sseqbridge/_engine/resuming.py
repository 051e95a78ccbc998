"""Chooses the request of a stream's next attempt: the same one, a GET, or what the caller's function returns.

Belongs to the loop thread, like the exchanges; other threads read `has_place`. The caller's function runs in a thread
of its own. Invariant: a URL that the server names for resuming is treated like a redirect, so that another origin gets
no credentials, and gives none back.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from sseqbridge._exceptions import UsageError
from sseqbridge._http.redirects import Place, is_trusted_hop, own_headers, target_url
from sseqbridge._http.request import check_framing, header_list
from sseqbridge._http.urls import is_requestable
from sseqbridge._runtime import loops
from sseqbridge._runtime.callbacks import CallersCode
from sseqbridge._sse.resumption import Attempt, Resume

from .sender import Resumption

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sseqbridge._http.request import RequestOptions

    from .exchange import Exchange
    from .sender import SentRequest

__all__ = ["Resuming"]

# The headers of a response that can name the URL at which its stream is resumed, in the order of their priority. In the
# response to a POST, Location is the resource that was created, Content-Location the one that the response represents.
# Source: RFC 9110, sections 8.7 and 10.2.2
_PLACES = ("location", "content-location")


class _LastResponse(NamedTuple):
    """The last response that was an event stream: its request, and its headers."""

    request: SentRequest
    headers: httpx.Headers


class Resuming:
    """The `resume` of a stream's policy, applied to its responses."""

    def __init__(self, options: RequestOptions) -> None:
        policy = options.reconnect
        assert policy is not None
        self._resume = policy.resume
        self._options = options
        self._last: _LastResponse | None = None
        # The place that a response has named, and whether `follow_redirects=False` excludes it.
        self._place: Place | None = None
        self._is_place_excluded = False

    @property
    def has_place(self) -> bool:
        """Whether a response has named where to resume."""
        return self._place is not None

    @property
    def is_place_excluded(self) -> bool:
        """Whether that place is at another origin, although the caller follows no redirects."""
        return self._is_place_excluded

    def note(self, exchange: Exchange) -> None:
        """Keep what the response of an exchange, an event stream, says about the attempt after it."""
        if self._resume is None or self._resume == "repeat":
            return
        request, headers = exchange.sent, exchange.headers
        self._last = _LastResponse(request, headers)
        if self._resume == "get":
            url = _named_url(self._last)
            # A response without a place leaves that of an earlier one.
            if url is not None:
                is_trusted = is_trusted_hop(request.url, url)
                self._place = Place("GET", url, None, request.is_trusted and is_trusted)
                self._is_place_excluded = self._options.follow_redirects is False and not is_trusted

    async def next(self, attempt: int, resumption: Resumption) -> tuple[RequestOptions, Resumption] | None:
        """Return the options and position of the next request, None if the caller's function gives up.

        Raises CallbackError if that function raises, and UsageError if it returns what cannot be requested.
        """
        last = self._last
        if last is None:
            return self._options, resumption
        options = self._options.without_body()
        if self._resume == "get":
            if self._place is not None and resumption.place is not self._place:
                # The permanent redirects so far are those of another URL.
                resumption = resumption._replace(place=self._place, redirects=())
            return options, resumption
        assert callable(self._resume)
        place = await _place_of(self._resume, attempt, last, resumption.last_event_id)
        return None if place is None else (options, resumption._replace(place=place, redirects=()))


def _named_url(last: _LastResponse) -> Any:
    """Return the URL that a response's headers name; None if they name none that can be requested."""
    urls = (_joined(last.request.url, last.headers[name]) for name in _PLACES if name in last.headers)
    return next((url for url in urls if url is not None), None)


async def _place_of(
    resume: Callable[[Attempt], Resume | None], attempt: int, last: _LastResponse, last_event_id: str
) -> Place | None:
    """Call the caller's function, in a thread of its own, and return its place."""
    request = last.request
    shown = Attempt(
        number=attempt,
        method=request.method,
        url=str(request.url),
        # Copies, which the function may change.
        headers=httpx.Headers(own_headers(request.headers)),
        last_event_id=last_event_id,
        response_headers=httpx.Headers(last.headers),
    )
    with CallersCode("the resume function", passes=()):
        chosen = await loops.run_in_daemon_thread("sseqbridge-resume", partial(resume, shown))
    if chosen is None:
        return None
    if inspect.iscoroutine(chosen):
        # A lambda that calls a coroutine function.
        chosen.close()
    if not isinstance(chosen, Resume):
        raise UsageError(f"`resume` must return a sseqbridge.Resume or None, got {type(chosen).__name__}")
    url = _joined(request.url, str(chosen.url))
    if url is None:
        raise UsageError("`resume` must return the URL of an http:// or https:// server, got another one")
    headers = None if chosen.headers is None else _own_list(chosen.headers)
    return Place(chosen.method.upper(), url, headers, request.is_trusted and is_trusted_hop(request.url, url))


def _own_list(headers: Mapping[str, str] | Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    pairs = header_list(headers, "`headers` of a Resume must be")
    check_framing(pairs, own_length=False)
    if isinstance(headers, dict):
        # {**attempt.headers, "Authorization": ...}: httpx's names are lower-case ones, and the later value is meant.
        pairs = list({name.lower(): (name, value) for name, value in pairs}.values())
    return pairs


def _joined(url: Any, target: str) -> Any:
    """Return `target` relative to `url`, None if no request can be sent to it."""
    try:
        joined = target_url(url, target)
    except Exception:  # Of httpx or httpx2, and of the modules for URLs below them.
        return None
    return joined if is_requestable(joined) else None
