"""Cookies that the responses of one call set, and that later requests of the same call send (RFC 6265).

A call is one stream: its redirects and reconnections. No cookie reaches another call. A cookie without a Domain
attribute goes to the origin that set it alone, and not, as in browsers, to other ports of the host. Used on the
event loop's thread.
"""

from __future__ import annotations

import email.message
import http.cookiejar
import re
import urllib.request
import weakref
from typing import Any

from .header_syntax import FORBIDDEN_IN_VALUE
from .urls import is_https_upgrade, origin_key

__all__ = ["CallCookies", "sets_cookies"]

# The least that RFC 6265, section 6.1 asks of a client. A server must not fill memory, or heads, over many responses.
_MAX_COOKIES = 50
_MAX_COOKIE_CHARACTERS = 4096

_IP_ADDRESS = re.compile(r"[0-9.]+|\[?[0-9a-fA-F:.]*:[0-9a-fA-F:.]*\]?")


def sets_cookies(response: Any) -> bool:
    """Whether a response has a Set-Cookie header."""
    return any(name.lower() == b"set-cookie" for name, _ in response.headers.raw)


class CallCookies:
    """The cookies of one call."""

    def __init__(self) -> None:
        # The URL of an origin, and the cookies that it has set.
        self._jars: dict[str, tuple[Any, http.cookiejar.CookieJar]] = {}

    def store(self, response: Any) -> None:
        """Keep the cookies that a response sets."""
        url = response.request.url
        key = origin_key(url)
        if not sets_cookies(response) or (key not in self._jars and len(self._jars) == _MAX_COOKIES):
            return
        if key not in self._jars:
            self._jars[key] = url, http.cookiejar.CookieJar(_Policy(url, self))
        self._jars[key][1].extract_cookies(_SetCookies(response), _request_to(url))  # type: ignore[arg-type]

    @property
    def count(self) -> int:
        """The number of cookies."""
        return sum(len(jar) for _, jar in self._jars.values())

    def add_to(self, request: Any) -> None:
        """Add the cookies for the request's URL. They replace cookies of the same name that the request has."""
        if not self._jars:
            return
        found: dict[str, str] = {}
        key = origin_key(request.url)
        # The origin's own cookies replace those of its domain.
        for _, jar in sorted(self._jars.values(), key=lambda kept: origin_key(kept[0]) == key):
            found |= _pairs(_cookie_header(jar, request.url))
        if found:
            sent = [value.decode("latin-1") for name, value in request.headers.raw if name.lower() == b"cookie"]
            kept = [pair for name, pair in _pairs("; ".join(sent)).items() if name not in found]
            headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"cookie"]
            headers.append((b"Cookie", "; ".join([*kept, *found.values()]).encode("latin-1")))
            request.headers = type(request.headers)(headers)


class _Policy(http.cookiejar.DefaultCookiePolicy):
    """Accepts cookies within the limits, and returns those without a Domain to their origin alone."""

    def __init__(self, url: Any, cookies: CallCookies) -> None:
        super().__init__()
        self._url = url
        # Weak: the cookies own the policy.
        self._cookies = weakref.ref(cookies)

    def set_ok(self, cookie: http.cookiejar.Cookie, request: urllib.request.Request) -> bool:
        text = f"{cookie.name}={cookie.value}"
        # Replacing a cookie counts as another one here.
        cookies = self._cookies()
        is_small = len(text) <= _MAX_COOKIE_CHARACTERS and cookies is not None and cookies.count < _MAX_COOKIES
        return is_small and not FORBIDDEN_IN_VALUE.search(text) and bool(super().set_ok(cookie, request))

    def return_ok(self, cookie: http.cookiejar.Cookie, request: urllib.request.Request) -> bool:
        url = request.full_url
        if origin_key(url) != origin_key(self._url) and not is_https_upgrade(self._url, url):
            has_domain = cookie.domain_specified and not _IP_ADDRESS.fullmatch(cookie.domain.lstrip("."))
            if not has_domain:
                return False
        return bool(super().return_ok(cookie, request))


class _SetCookies:
    """The Set-Cookie headers of a response, as http.cookiejar reads them."""

    def __init__(self, response: Any) -> None:
        self._headers = response.headers.raw

    def info(self) -> email.message.Message:
        message = email.message.Message()
        for name, value in self._headers:
            if name.lower() == b"set-cookie":
                message["Set-Cookie"] = value.decode("latin-1")
        return message


def _request_to(url: Any) -> urllib.request.Request:
    # Without the credentials, which http.cookiejar would take for a part of the host.
    return urllib.request.Request(f"{url.scheme}://{url.netloc.decode('ascii')}{url.raw_path.decode('ascii')}")


def _cookie_header(jar: http.cookiejar.CookieJar, url: Any) -> str:
    request = _request_to(url)
    jar.add_cookie_header(request)
    return request.get_header("Cookie") or ""


def _pairs(header: str) -> dict[str, str]:
    """Return the pairs of a Cookie header by their names."""
    pairs = (pair.strip() for pair in header.split(";"))
    return {pair.partition("=")[0].strip(): pair for pair in pairs if pair}
