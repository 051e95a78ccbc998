"""Errors of HTTP transports, classified by type and attribute. The texts of the errors are never the reason."""

from __future__ import annotations

import errno
from typing import Any

import h2.errors
import h2.events
import h2.exceptions
import h11
import httpcore
import httpcore2
import httpx
import httpx2
import pytest

from sseqbridge import (
    CallbackError,
    ConnectError,
    ProtocolError,
    ReadError,
    SSEError,
    StreamTimeoutError,
    Timeout,
    TransportError,
    TruncatedStreamError,
)
from sseqbridge._http.errors import (
    ConnectionClosed,
    FailedRequest,
    ReusedConnectionClosed,
    is_closed_by_peer,
    is_unsendable,
    translate,
)
from sseqbridge._http.forwarded import error_of

pytestmark = pytest.mark.configurations("default")

PACKAGES = {httpx: httpcore, httpx2: httpcore2}
CONFUSING = "peer closed connection, StreamReset, disconnected"


def failed(package: Any = httpx, *, has_head: bool = False, runs_callers_code: bool = False) -> FailedRequest:
    timeout = Timeout(connect=1, read=2)
    return FailedRequest(package, "http://a.test/", "POST", timeout, has_head, runs_callers_code)


def raised_from(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error


def h11_error(*received: bytes, head: bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n") -> Exception:
    """Return h11's error for a response that continues like this; b"" is the end of the connection."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a.test")]))
    connection.send(h11.EndOfMessage())
    for data in (head, *received):
        connection.receive_data(data)
        try:
            while connection.next_event() is not h11.NEED_DATA:
                pass
        except h11.RemoteProtocolError as exc:
            return exc
    raise AssertionError("h11 accepted the response")


def of_httpcore(package: Any, argument: object) -> Exception:
    """Return the package's error for a RemoteProtocolError of its httpcore, as raised through httpcore's pool."""
    core_error = PACKAGES[package].RemoteProtocolError(argument)
    core_error.__suppress_context__ = True
    return raised_from(package.RemoteProtocolError(str(core_error)), core_error)


@pytest.mark.parametrize(
    ("name", "which", "seconds"),
    [
        ("ConnectTimeout", "connect", 1),
        ("PoolTimeout", "connect", 1),
        ("ReadTimeout", "read", 2),
        ("WriteTimeout", "write", 2),
    ],
)
@pytest.mark.parametrize("package", [httpx, httpx2])
def test_timeouts_name_their_limit(package: Any, name: str, which: str, seconds: float) -> None:
    error = translate(getattr(package, name)(CONFUSING), failed(package))
    assert isinstance(error, StreamTimeoutError)
    assert str(error) == str(StreamTimeoutError(which, seconds, failed(package).target))


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_an_error_of_this_package_stays(package: Any) -> None:
    error = SSEError("mine")
    assert translate(error, failed(package)) is error


def test_a_connect_error_has_the_systems_reason() -> None:
    refused = OSError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)")
    error = translate(raised_from(httpx.ConnectError("?"), refused), failed())
    assert isinstance(error, ConnectError)
    assert str(error) == "no connection to http://a.test/: Connection refused"


def test_a_reason_is_found_in_a_group_of_causes() -> None:
    class GroupError(Exception):
        exceptions = (OSError(errno.EHOSTUNREACH, "No route to host"),)

    assert "No route to host" in str(translate(raised_from(httpx.ConnectError("?"), GroupError()), failed()))


def test_an_error_whose_property_raises_is_no_group() -> None:
    class LazyError(OSError):
        @property
        def exceptions(self) -> tuple[Exception, ...]:
            raise RuntimeError("not loaded")

    cause = LazyError(errno.EHOSTUNREACH, "No route to host")
    assert "No route to host" in str(translate(raised_from(httpx.ConnectError("?"), cause), failed()))


def test_a_host_that_is_no_name_is_a_reason() -> None:
    cause = UnicodeError("label empty or too long")
    assert "the host is not a valid name" in str(translate(raised_from(httpx.ConnectError("?"), cause), failed()))


def test_without_a_reason_the_type_is_shown() -> None:
    assert str(translate(httpx.ProxyError(CONFUSING), failed())) == "no connection to http://a.test/: ProxyError"


@pytest.mark.parametrize("error", [httpx.ReadError("x"), httpx.WriteError("x"), ConnectionResetError("x")])
def test_a_broken_connection_is_a_read_error(error: Exception) -> None:
    assert type(translate(error, failed())) is ReadError


@pytest.mark.parametrize("kind", [ConnectionClosed, ReusedConnectionClosed])
@pytest.mark.parametrize("has_head", [False, True])
def test_own_errors_of_a_closed_connection(kind: type[httpx.RemoteProtocolError], has_head: bool) -> None:
    error = translate(kind("x"), failed(has_head=has_head))
    assert type(error) is (TruncatedStreamError if has_head else ReadError)
    assert ("may have processed this POST" in str(error)) is (kind is ReusedConnectionClosed and not has_head)


def test_own_error_without_a_cause_is_invalid_http() -> None:
    assert type(translate(httpx.RemoteProtocolError(CONFUSING), failed())) is ProtocolError


@pytest.mark.parametrize("package", [httpx, httpx2])
@pytest.mark.parametrize("has_head", [False, True])
def test_an_end_that_httpcore_finds_is_a_close(package: Any, has_head: bool) -> None:
    error = translate(of_httpcore(package, "any text"), failed(package, has_head=has_head))
    assert type(error) is (TruncatedStreamError if has_head else ReadError)


@pytest.mark.parametrize("package", [httpx, httpx2])
@pytest.mark.parametrize("kind", [h2.events.StreamReset, h2.events.ConnectionTerminated])
def test_http2_resets_are_a_close(package: Any, kind: Any) -> None:
    event = kind.__new__(kind)
    event.stream_id, event.error_code = 1, h2.errors.ErrorCodes.INTERNAL_ERROR
    event.remote_reset, event.last_stream_id, event.additional_data = True, 1, b""
    assert is_closed_by_peer(of_httpcore(package, event))


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_http2_violations_are_no_close(package: Any) -> None:
    assert not is_closed_by_peer(of_httpcore(package, h2.exceptions.ProtocolError(CONFUSING)))


@pytest.mark.parametrize("package", [httpx, httpx2])
@pytest.mark.parametrize(
    ("received", "head"),
    [
        ([b"5\r\nabc", b""], None),
        ([b"5\r\n", b""], None),
        ([b"5", b""], None),
        ([b""], None),
        ([b"abc", b""], b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
    ],
    ids=["in a chunk", "before a chunk", "in a chunk's size", "between chunks", "in a sized body"],
)
def test_an_end_within_a_body_is_a_close(package: Any, received: list[bytes], head: bytes | None) -> None:
    error = h11_error(*received) if head is None else h11_error(*received, head=head)
    assert is_closed_by_peer(of_httpcore(package, error))


@pytest.mark.parametrize("package", [httpx, httpx2])
@pytest.mark.parametrize(
    "received",
    [[b"no chunk\r\n"], [b"3\r\nabcd\r\n"], [b"5" * 30_000], [b"peer closed connection\r\n"]],
    ids=["no size", "too long", "endless size", "confusing"],
)
def test_invalid_chunks_are_no_close(package: Any, received: list[bytes]) -> None:
    error = h11_error(*received)
    assert not is_closed_by_peer(of_httpcore(package, error))
    assert type(translate(of_httpcore(package, error), failed(package, has_head=True))) is ProtocolError


def test_an_error_without_a_traceback_is_no_close() -> None:
    assert not is_closed_by_peer(of_httpcore(httpx, h11.RemoteProtocolError(CONFUSING)))


def test_a_proxy_error_without_an_answer_has_no_status() -> None:
    core_error = httpcore.ProxyError(CONFUSING)
    error = translate(raised_from(httpx.ProxyError(CONFUSING), core_error), failed())
    assert isinstance(error, ConnectError)
    assert error.proxy_status is None


def test_errors_internal_to_a_package_become_those_of_their_base() -> None:
    internal = type("Internal", (httpx.ReadTimeout,), {"__module__": "httpx._internal"})("took too long")
    error = error_of(httpx2, internal)
    assert (type(error), str(error), error.__cause__) == (httpx2.ReadTimeout, "took too long", internal)


def test_errors_of_other_packages_stay() -> None:
    error = OSError("full")
    assert error_of(httpx2, error) is error


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_a_location_that_httpx_cannot_parse(package: Any) -> None:
    assert "usable Location" in str(translate(package.InvalidURL("x"), failed(package)))
    request = package.Request("GET", "http://a.test/")
    response = package.Response(302, headers={"Location": "http://b:x/"}, request=request)
    client = package.AsyncClient(transport=package.MockTransport(lambda _: response))
    with pytest.raises(package.RemoteProtocolError) as caught:
        client._build_redirect_request(request, response)
    error = translate(caught.value, failed(package))
    assert type(error) is ProtocolError
    assert "usable Location" in str(error)


@pytest.mark.parametrize("runs_callers_code", [False, True])
def test_other_errors_are_the_callers_or_the_transports(runs_callers_code: bool) -> None:
    request = failed(runs_callers_code=runs_callers_code)
    assert type(translate(KeyError(CONFUSING), request)) is (CallbackError if runs_callers_code else TransportError)
    assert type(translate(httpx.DecodingError(CONFUSING), request)) is TransportError


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_a_request_that_the_client_refuses_is_unsendable(package: Any) -> None:
    refused = package.LocalProtocolError("x")
    assert is_unsendable(refused, package)
    assert not is_unsendable(package.RemoteProtocolError("x"), package)
    assert not is_unsendable(raised_from(package.LocalProtocolError("x"), h2.exceptions.ProtocolError()), package)
