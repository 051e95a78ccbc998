"""TlsSession against the ssl module's server side, without a socket."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator

import pytest

from sseqbridge._http.tls import TlsSession

pytestmark = pytest.mark.configurations("default")

Begin = Callable[[], tuple[TlsSession, "Server"]]


class Server:
    """The server's side of the session."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def respond(self, data: bytes) -> bytes:
        """Return the next part of the handshake."""
        self.incoming.write(data)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    def goodbye(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()

    def read(self, data: bytes) -> bytes:
        self.incoming.write(data)
        read = b""
        try:
            while part := self.tls.read(100_000):
                read += part
        except ssl.SSLWantReadError:
            pass
        return read


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def begin(request: pytest.FixtureRequest, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> Iterator[Begin]:
    def begin() -> tuple[TlsSession, Server]:
        return TlsSession(client_tls, "localhost"), Server(server_tls)

    server_tls.maximum_version = request.param
    yield begin
    server_tls.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED


def established(begin: Begin, *, step: int = 100_000) -> tuple[TlsSession, Server]:
    session, server = begin()
    while not session.is_established:
        response = server.respond(session.to_send())
        assert response, session.error
        for start in range(0, len(response), step):
            assert session.receive(response[start : start + step]) == b""
    # The last part of the client's handshake, and with TLS 1.3 the tickets that follow.
    session.receive(server.respond(session.to_send()))
    return session, server


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_bytes_are_encrypted_and_decrypted(begin: Begin, step: int) -> None:
    session, server = established(begin, step=step)
    text = bytes(range(256)) * 400
    sent = server.encrypt(text)
    assert b"".join(session.receive(sent[start : start + step]) for start in range(0, len(sent), step)) == text
    assert server.read(session.encrypt(text)) == text
    assert (session.ended, session.error, session.to_send()) == (False, None, b"")


def test_close_notify_ends_the_session(begin: Begin) -> None:
    session, server = established(begin)
    assert session.receive(server.encrypt(b"last") + server.goodbye()) == b"last"
    assert (session.ended, session.error) == (True, None)


def test_bytes_before_a_broken_record_are_received(begin: Begin) -> None:
    session, server = established(begin)
    whole, broken = server.encrypt(b"one"), bytearray(server.encrypt(b"two"))
    broken[-1] ^= 1
    assert session.receive(whole + broken) == b"one"
    assert isinstance(session.error, ssl.SSLError)
    assert session.to_send(), "an alert notifies the peer"
    with pytest.raises(ssl.SSLError):
        session.encrypt(b"more")


def test_certificate_for_another_name_is_refused(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    session, server = TlsSession(client_tls, "other.test"), Server(server_tls)
    while session.error is None:
        session.receive(server.respond(session.to_send()))
    assert isinstance(session.error, ssl.SSLCertVerificationError)
    assert not session.is_established
    with pytest.raises(ssl.SSLError, match="alert"):
        server.respond(session.to_send())


def test_peer_without_tls_is_an_error(client_tls: ssl.SSLContext) -> None:
    session = TlsSession(client_tls, "localhost")
    assert session.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n") == b""
    assert session.error is not None


def test_invalid_host_is_a_value_error(client_tls: ssl.SSLContext) -> None:
    with pytest.raises(ValueError, match="server_hostname"):
        TlsSession(client_tls, "")


@pytest.mark.parametrize("how", ["goodbye", "broken"])
def test_bytes_after_the_end_are_not_buffered(begin: Begin, how: str) -> None:
    session, server = established(begin)
    assert session.receive(server.encrypt(b"last")) == b"last"
    session.receive(server.goodbye() if how == "goodbye" else bytes(100))
    assert session.ended or session.error
    for _ in range(100):
        assert session.receive(bytes(10_000)) == b""
    assert session._incoming.pending < 1000


def test_large_reads_are_decrypted_in_slices(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL never shrinks its buffer."""
    session, server = established(begin)
    most = 0

    class Watched:
        pending = property(lambda self: real.pending)

        def write(self, data: bytes) -> int:
            nonlocal most
            written = real.write(data)
            most = max(most, real.pending)
            return written

    real = session._incoming
    monkeypatch.setattr(session, "_incoming", Watched())
    text = bytes(range(256)) * 1000
    assert session.receive(server.encrypt(text)) == text
    assert most <= 50_000
