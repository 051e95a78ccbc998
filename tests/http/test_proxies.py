"""Proxies of the environment: which requests they are for, and what happens if they cannot be used."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from sseqbridge import ConnectError, ReconnectionPolicy, UsageError
from sseqbridge._http import client as http_client
from sseqbridge._http.proxies import ProxySettings
from sseqbridge.testing import SSEServer, respond, send
from tests.requesters import Requester
from tests.support import in_thread, subscription_of

from .upstream import own_transport

DONE = send("[DONE]")
PROXY = "http://proxy.test:3128"

Environment = Mapping[str, str]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tuple(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("SSL_CERT"):
            monkeypatch.delenv(name)


def proxy_for(url: str, no_proxy: str = "", **found: str) -> str | None:
    return ProxySettings({"no": no_proxy, **(found or {"all": PROXY})}).proxy_for(httpx.URL(url))


@pytest.mark.parametrize(
    ("found", "url", "proxy"),
    [
        ({"http": PROXY}, "http://a.test/", PROXY),
        ({"http": PROXY}, "https://a.test/", None),
        ({"https": PROXY}, "https://a.test/", PROXY),
        ({"all": PROXY}, "https://a.test/", PROXY),
        ({"all": PROXY, "http": "http://other.test"}, "http://a.test/", "http://other.test"),
        ({"http": "proxy.test:3128"}, "http://a.test/", PROXY),
        ({"http": f" {PROXY}\r\n"}, "http://a.test/", PROXY),
        ({"http": " proxy.test:3128 "}, "http://a.test/", PROXY),
        ({"ftp": PROXY, "no": "x"}, "http://a.test/", None),
        ({}, "http://a.test/", None),
    ],
)
def test_proxy_of_the_scheme_is_used(found: dict[str, str], url: str, proxy: str | None) -> None:
    assert ProxySettings(found).proxy_for(httpx.URL(url)) == proxy


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("*", "http://a.test/"),
        ("b.test, *", "http://a.test/"),
        ("a.test", "http://a.test/"),
        ("A.TEST", "http://a.test/"),
        ("b.test,a.test", "https://a.test/"),
        (" b.test  a.test ", "http://a.test/"),
        ("a.test", "http://x.y.a.test/"),
        (".a.test", "http://x.a.test/"),
        (".a.test", "http://a.test/"),
        ("*.a.test", "http://x.a.test/"),
        ("*a.test", "http://x.a.test/"),
        ("a.test.", "http://a.test/"),
        ("a.test", "http://a.test./"),
        ("a.test:81", "http://a.test:81/"),
        ("a.test:80", "http://a.test/"),
        ("a.test:443", "https://a.test/"),
        ("http://a.test", "http://a.test/"),
        ("https://a.test/", "https://a.test/"),
        ("all://a.test", "http://a.test/"),
        ("bücher.test", "http://bücher.test/"),
        ("xn--bcher-kva.test", "http://bücher.test/"),
        ("localhost", "http://localhost:1/"),
        ("127.0.0.1", "http://127.0.0.1:1/"),
        ("127.0.0.1:1", "http://127.0.0.1:1/"),
        ("10.0.0.0/8", "http://10.20.30.40/"),
        ("10.1.2.3/8", "http://10.20.30.40/"),
        ("0.0.0.0/0", "http://10.20.30.40/"),
        ("10.0.0.0/8", "http://[::ffff:10.0.0.1]/"),
        ("::ffff:10.0.0.1", "http://[::ffff:10.0.0.1]/"),
        ("[::ffff:10.0.0.1]", "http://10.0.0.1/"),
        ("::ffff:10.0.0.0/104", "http://10.20.30.40/"),
        ("::1", "http://[::1]:1/"),
        ("[::1]", "http://[::1]:1/"),
        ("[::1]:1", "http://[::1]:1/"),
        ("0:0:0:0:0:0:0:1", "http://[::1]/"),
        ("http://[::1]", "http://[::1]/"),
        ("fe80::/10", "http://[fe80::1]/"),
        ("[fe80::]/10", "http://[fe80::1]/"),
        ("::/0", "http://[2001:db8::1]/"),
        # Entries that are none do not hide the others.
        ("[::1,fe80::/999,:,http://,a b:x,/,10.0.0.0/33,[,a.test", "http://a.test/"),
    ],
)
def test_exempt_host_is_connected_directly(no_proxy: str, url: str) -> None:
    assert proxy_for(url, no_proxy) is None
    # Whatever the proxy is.
    assert proxy_for(url, no_proxy, all="socks://proxy.test:1") is None


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("", "http://a.test/"),
        ("a.test", "http://nota.test/"),
        ("a.test", "http://a.test.evil.test/"),
        ("x.a.test", "http://a.test/"),
        ("a.test:81", "http://a.test/"),
        ("https://a.test", "http://a.test/"),
        ("127.0.0.1", "http://127.0.0.2/"),
        ("10.0.0.0/8", "http://11.0.0.1/"),
        ("10.0.0.0/8", "http://[::1]/"),
        ("::ffff:10.0.0.0/104", "http://11.0.0.1/"),
        ("10.0.0.0/8", "http://ten.test/"),
        ("::/0", "http://10.0.0.1/"),
        ("fe80::/10", "http://[2001:db8::1]/"),
        ("[::1]:2", "http://[::1]:1/"),
        ("localhost", "http://127.0.0.1/"),
    ],
)
def test_other_hosts_use_the_proxy(no_proxy: str, url: str) -> None:
    assert proxy_for(url, no_proxy) == PROXY


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("socks://user:secret@127.0.0.1:9/", "got the scheme 'socks'"),
        ("socks4://user:secret@127.0.0.1:9", "got the scheme 'socks4'"),
        ("ftp://user:secret@127.0.0.1", "got the scheme 'ftp'"),
        ("http://user:secret@127.0.0.1:port", "got an invalid URL"),
        ("http://user:secret@127.0.0.1:99999", "got an invalid port"),
        ("http://", "got no host"),
        ("http://not a host", "got an invalid host"),
        ("socks5://user:secret@127.0.0.1:9", r"httpx\[socks\]"),
        ("socks5h://user:secret@127.0.0.1:9", r"Run pip install 'httpx\[socks\]', unset it, or add .* to NO_PROXY\."),
    ],
)
def test_unusable_proxy_names_its_variable(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"`{name}` must be .*{reason}") as caught:
        ask_fresh("http://upstream.test/")
    assert "secret" not in str(caught.value)


def test_proxy_that_httpx_does_not_support_names_its_variable(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions of httpx support different schemes."""

    def refuse(*args: object, **options: object) -> None:
        raise ValueError("Unknown scheme for proxy URL")

    monkeypatch.setattr(httpx, "Proxy", refuse)
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    with pytest.raises(UsageError, match=r"`HTTP_PROXY` must be a proxy that httpx .* supports, got the scheme 'http'"):
        ask_fresh("http://upstream.test/")


@pytest.mark.parametrize(
    "environment",
    [
        {"ALL_PROXY": "socks://127.0.0.1:9/", "NO_PROXY": "127.0.0.1"},
        {"HTTPS_PROXY": "socks://127.0.0.1:9/"},
        {"HTTP_PROXY": "http://127.0.0.1:9/", "NO_PROXY": "[::1],fe80::/10,127.0.0.0/8"},
        {"NO_PROXY": "localhost,127.0.0.1,[::1],::1/x"},
        {"no_proxy": "[::1"},
        {"SSL_CERT_FILE": "/does/not/exist"},
        {"SSL_CERT_DIR": "/does/not/exist"},
        {"SSL_CERT_FILE": "/does/not/exist", "ALL_PROXY": "http://127.0.0.1:9/", "NO_PROXY": "127.0.0.1"},
    ],
)
@pytest.mark.parametrize("extensions", [None, {"target": b"/x"}], ids=["direct", "by httpx"])
def test_settings_that_a_request_does_not_need_are_ignored(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, environment: Environment, extensions: Any
) -> None:
    monkeypatch.setattr(http_client, "_tls_context", None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with SSEServer([send(1), DONE]) as server, ask_fresh(server.url, extensions=extensions) as response:
        assert response.items() == [1]


@own_transport
@pytest.mark.parametrize("environment", [{"NO_PROXY": "a.test"}, {"HTTP_PROXY": PROXY, "NO_PROXY": "127.0.0.1"}])
def test_request_without_a_proxy_uses_the_librarys_transport(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, environment: Environment
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with SSEServer([send(1), DONE]) as server, ask_fresh(server.url) as response:
        assert response.items() == [1]
        assert subscription_of(response.events).exchange.is_direct


def test_redirect_to_an_unusable_proxy_is_a_connect_error(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with SSEServer([respond(302, {"Location": "http://upstream.test/"}, content_type=None)]) as server:
        for policy in (None, ReconnectionPolicy(delay=0.01)):
            with pytest.raises(ConnectError, match="`ALL_PROXY` must be"):
                ask_fresh(server.url, reconnect=policy)
        # It would fail in the same way again.
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "phrase"), [(407, "407 Proxy Authentication Required"), (502, "502 Bad Gateway"), (599, "599")]
)
def test_refused_connect_has_the_status_of_the_proxy(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, status: int, phrase: str
) -> None:
    with SSEServer([respond(status, content_type=None)]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(ConnectError, match=f"the proxy answered {phrase}") as caught:
            ask_fresh("https://upstream.test/?key=secret")
        assert caught.value.proxy_status == status
        assert proxy.requests[0].method == "CONNECT"


def read_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += connection.recv(count - len(data))
    return data


def serve_as_socks_proxy(listener: socket.socket) -> tuple[bytes, bytes, bytes, int]:
    """Serve one request as a SOCKS5 proxy (RFC 1928, RFC 1929), and as the upstream behind it.

    Returns the user, the password, and the host and port that the proxy is to connect to.
    """
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(30)
        _, count = read_exactly(connection, 2)
        assert 2 in read_exactly(connection, count)
        connection.sendall(b"\x05\x02")
        _, length = read_exactly(connection, 2)
        user = read_exactly(connection, length)
        password = read_exactly(connection, read_exactly(connection, 1)[0])
        connection.sendall(b"\x01\x00")
        # A request to connect to a name.
        assert read_exactly(connection, 4) == b"\x05\x01\x00\x03"
        host = read_exactly(connection, read_exactly(connection, 1)[0])
        port = int.from_bytes(read_exactly(connection, 2), "big")
        connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += read_exactly(connection, 1)
        assert head.startswith(b"GET /a HTTP/1.1\r\n")
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\ndata: [DONE]\n\n")
    return user, password, host, port


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_socks_proxy_of_the_environment_is_used(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://user:secret@127.0.0.1:{listener.getsockname()[1]}")
        serving = in_thread(lambda: serve_as_socks_proxy(listener))
        # The proxy looks the name up.
        with ask_fresh("http://upstream.test:8080/a") as response:
            assert response.items() == [1]
        assert serving.result(30) == (b"user", b"secret", b"upstream.test", 8080)


def test_other_failures_have_no_proxy_status(ask_fresh: Requester, closed_port: int) -> None:
    with pytest.raises(ConnectError) as caught:
        ask_fresh(f"http://127.0.0.1:{closed_port}")
    assert caught.value.proxy_status is None


@pytest.mark.parametrize("kind", ["missing", "empty", "directory"])
def test_stale_certificate_file_is_named(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "ca.pem"
    if kind == "empty":
        path.touch()
    monkeypatch.setattr(http_client, "_tls_context", None)
    monkeypatch.setenv("SSL_CERT_DIR" if kind == "directory" else "SSL_CERT_FILE", str(path))
    name = "SSL_CERT_DIR" if kind == "directory" else "SSL_CERT_FILE"
    with SSEServer([send(1), DONE], ssl_context=server_tls) as server:
        for policy in (None, ReconnectionPolicy(delay=0.01)):
            with pytest.raises(ConnectError, match=f"`{name}` must name a"):
                ask_fresh(server.url, reconnect=policy)


@pytest.mark.own_transport
def test_other_failure_of_the_certificates_is_a_typed_error(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext
) -> None:
    def fails() -> ssl.SSLContext:
        raise FileNotFoundError(2, "No such file or directory", "certifi/cacert.pem")

    monkeypatch.setattr(http_client, "_tls_context", None)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setattr(httpx, "create_ssl_context", fails)
    with SSEServer([send(1), DONE], ssl_context=server_tls) as server:
        with pytest.raises(ConnectError, match="No such file or directory"):
            ask_fresh(server.url)
        assert server.requests == []


def test_certificate_file_that_is_corrected_is_used(
    ask_fresh: Requester, monkeypatch: pytest.MonkeyPatch, server_tls: ssl.SSLContext, authority: Any, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    monkeypatch.setattr(http_client, "_tls_context", None)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with SSEServer([send(1), DONE], ssl_context=server_tls) as server:
        with pytest.raises(ConnectError, match="SSL_CERT_FILE"):
            ask_fresh(server.url)
        authority.cert_pem.write_to_path(path)
        with ask_fresh(server.url) as response:
            assert response.items() == [1]
