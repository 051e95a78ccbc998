"""The proxies of the environment, and the hosts that are connected directly: HTTP_PROXY, ALL_PROXY, NO_PROXY.

An entry of NO_PROXY matches as in curl, requests and httpx together: a host with its subdomains, an IP address, a
prefix of addresses (10.0.0.0/8, fe80::/10), each with or without a port, a URL with a scheme, or "*" for every host.
Other entries are ignored. A proxy that cannot be used is an error for the requests that need it alone. Immutable.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from sseqbridge._exceptions import UsageError

__all__ = ["ProxySettings"]

_SCHEMES = ("http", "https", "socks5", "socks5h")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SEPARATORS = re.compile(r"[,\s]+")
# Scheme, host and port: "[::1]:80", "::1", "https://a.test", "*.a.test:81".
_ENTRY = re.compile(r"(?:([a-z]+)://)?(?:\[([0-9a-f:.%\w]+)\](?::(\d+))?|([^:/]+)(?::(\d+))?|([0-9a-f:.%\w]+))/?")

# Not "%25", which may stand before the zone of an IPv6 address.
_ESCAPED_HOST = re.compile(rb"%(?!25)")

# The bits before the IPv4 address in an IPv6 address that it is mapped to.
_MAPPED_BITS = 96

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class _Exemption(NamedTuple):
    """One entry of NO_PROXY. `scheme` "" and `port` None match all; one of `host` and `network` is set."""

    scheme: str
    host: str
    network: _Network | None
    port: int | None

    def matches(self, scheme: str, hosts: tuple[str, ...], address: Any, port: int) -> bool:
        """Whether a URL with this scheme, host and port is exempt. `address` is the host's, if it is an IP address."""
        if self.scheme not in ("", "all", scheme) or self.port not in (None, port):
            return False
        if self.network is not None:
            return address is not None and address.version == self.network.version and address in self.network
        return any(host == self.host or host.endswith(f".{self.host}") for host in hosts)


class ProxySettings:
    """The proxy settings of the environment at one time."""

    def __init__(self, found: Mapping[str, str]) -> None:
        """Take the proxies by scheme, and the exempt hosts as "no", as urllib.request.getproxies() returns them."""
        self._proxies = {scheme: found[scheme] for scheme in ("http", "https", "all") if found.get(scheme)}
        entries = [entry for entry in _SEPARATORS.split(found.get("no", "").lower()) if entry]
        if "*" in entries:
            self._proxies.clear()
        self._exemptions = [made for entry in entries if (made := _exemption(entry)) is not None]

    @classmethod
    def of_environment(cls) -> ProxySettings:
        """Return the settings of now."""
        return cls(urllib.request.getproxies())

    def proxy_for(self, url: Any) -> str | None:
        """Return the URL of the proxy for a request, None to connect directly.

        Raises UsageError, which names the variable, if the proxy cannot be used.
        """
        if not self._proxies:
            return None
        scheme = url.scheme if url.scheme in self._proxies else "all"
        proxy = self._proxies.get(scheme)
        if proxy is None or self._is_exempt(url):
            return None
        proxy = proxy.strip() if "://" in proxy else f"http://{proxy.strip()}"
        _check(proxy, _variable(scheme), url.host)
        return proxy

    def _is_exempt(self, url: Any) -> bool:
        hosts = url.host.lower().rstrip("."), url.raw_host.decode("ascii").lower().rstrip(".")
        address = _address(hosts[0])
        port = url.port or _DEFAULT_PORTS.get(url.scheme, 0)
        return any(exemption.matches(url.scheme, hosts, address, port) for exemption in self._exemptions)


def _exemption(entry: str) -> _Exemption | None:
    if "/" in entry and "://" not in entry:
        network = _network(entry.replace("[", "").replace("]", ""))
        return None if network is None else _Exemption("", "", network, None)
    match = _ENTRY.fullmatch(entry)
    if match is None:
        return None
    scheme, bracketed, bracketed_port, name, name_port, bare = match.groups()
    # "*.a.test", "*a.test" and ".a.test" all mean the domain with its subdomains.
    host = (bracketed or name or bare).lstrip("*").strip(".")
    port = bracketed_port or name_port
    if not host:
        return None
    return _Exemption(scheme or "", host, _network(host), None if port is None else int(port))


def _network(text: str) -> _Network | None:
    try:
        network = ipaddress.ip_network(text.partition("%")[0], strict=False)
    except ValueError:
        return None
    # As _address() does: ::ffff:10.0.0.0/104 is 10.0.0.0/8.
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - _MAPPED_BITS), strict=False)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _variable(scheme: str) -> str:
    """Return the name of the environment variable that urllib has read."""
    names = [name for name in os.environ if name.lower() == f"{scheme}_proxy" and os.environ[name]]
    # Lower case has priority.
    return max(names, default=f"{scheme.upper()}_PROXY")


def _check(proxy: str, variable: str, host: str) -> None:
    try:
        url = httpx.URL(proxy)
        got = f"the scheme {url.scheme!r}" if url.scheme not in _SCHEMES else "" if url.host else "no host"
        if _ESCAPED_HOST.search(url.raw_host):
            # httpx escapes blanks and other characters that no host has.
            got = got or "an invalid host"
    except httpx.InvalidURL:
        got = "an invalid URL"
    if not got and (url.port or 0) > 65535:
        got = "an invalid port"
    advice = f"unset it, or add {host} to NO_PROXY."
    if got:
        names = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        where = f"the environment variable `{variable}`"
        raise UsageError(f"{where} must be a URL that begins with one of {names}, got {got}. Correct it, {advice}")
    if url.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise UsageError(
            f"the environment variable `{variable}` must be an http:// or https:// proxy without the package socksio, "
            f"got a SOCKS proxy. Run pip install 'httpx[socks]', {advice}"
        )
    try:
        httpx.Proxy(proxy)
    except ValueError:
        raise UsageError(
            f"the environment variable `{variable}` must be a proxy that httpx {httpx.__version__} supports, "
            f"got the scheme {url.scheme!r}. Correct it, {advice}"
        ) from None
