"""A TCP connection on an asyncio transport, optionally with TLS: the byte layer below HTTP/1.1.

Runs on the event loop's thread. Invariants: received bytes reach `bytes_received` in order and before the end
of the connection does; reading and writing both have backpressure; at most one coroutine waits for received bytes,
and one for room to write.
"""

from __future__ import annotations

import abc
import asyncio
import enum
import errno
import ssl
import sys
from typing import Any

import httpx

from sseqbridge._runtime import sockets

from .errors import ConnectionFailedError
from .tls import TlsSession

__all__ = ["READ_BYTES", "Bytes", "InputState", "NetworkStream"]

Bytes = bytes | memoryview

# The most that one read takes.
READ_BYTES = 64 * 1024 if sys.platform == "win32" else 256 * 1024

# The size of one write to the loop.
_WRITE_BYTES = 64 * 1024

# The most TLS protocol replies (such as key updates) that may wait to be sent: far more than a request leaves.
_MAX_UNSENT_TLS_BYTES = 1024 * 1024

# The names of httpx, and those of asyncio for the same addresses.
_INFO_NAMES = {"server_addr": "peername", "client_addr": "sockname"}


class InputState(enum.Enum):
    """The receiving side of a connection: OPEN -> ENDED -> LOST, or OPEN -> LOST."""

    OPEN = enum.auto()
    # The peer has half-closed the connection, or an error has ended it: nothing more is received.
    ENDED = enum.auto()
    # The loop has called connection_lost(): the transport must not be aborted any more.
    LOST = enum.auto()


class NetworkStream(asyncio.BufferedProtocol, abc.ABC):
    """The protocol of one connection; a subclass receives the bytes.

    `transport` is None until connection_made(). `error` is set if the input has ended by an error.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        """Read into `buffer`, which has READ_BYTES bytes and may be shared by the connections of a loop."""
        self.loop = loop
        self.transport: Any = None
        self.input = InputState.OPEN
        self.error: httpx.ReadError | httpx.ReadTimeout | None = None
        self.is_reading_paused = False  # Read flow control, by the subclass.
        # One read is over before the loop begins the next, except on Windows, where reads of all connections
        # are pending at the same time. (A buffer that asyncio allocates for each read costs several system calls.)
        self._buffer = memoryview(bytearray(READ_BYTES)) if sys.platform == "win32" else buffer
        self._tls: TlsSession | None = None
        # Write flow control: whether the transport's buffer has room, and the coroutine that waits for room.
        self._can_write = True
        self._writer: asyncio.Future[None] | None = None
        # The coroutine that waits for received bytes, and its time limit.
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_received_at = 0.0
        # The limit of limit_silence(). Its timer is kept when the limit changes, and when there is none.
        self._silence_limit: float | None = None
        self._silence_timer: asyncio.TimerHandle | None = None
        self._silence_due = 0.0

    @abc.abstractmethod
    def bytes_received(self, data: bytes) -> None:
        """Take bytes of the peer, decrypted."""

    @abc.abstractmethod
    def input_ended(self) -> None:
        """Called once: nothing more will be received; see `error`."""

    def silence_elapsed(self, error: httpx.ReadTimeout) -> None:
        """No bytes were received within the limit of limit_silence()."""

    # asyncio's protocol.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._receive(bytes(self._buffer[:nbytes]))
        if nbytes == READ_BYTES:
            self._yield_to_loop()

    def eof_received(self) -> None:
        # asyncio closes the connection after this, once its write buffer has been sent.
        self._end_input(InputState.ENDED, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._can_write = True
        try:
            if exc is not None and self.input is InputState.OPEN and (rest := _unread_bytes(self.transport)):
                self._receive(rest)
        finally:  # Nothing else ends the exchange.
            self._end_input(InputState.LOST, exc)

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._wake_writer()

    # Reading.

    def _receive(self, data: bytes) -> None:
        if self._tls is None:
            self._last_received_at = self.loop.time()
            self.bytes_received(data)
        else:
            self._receive_encrypted(self._tls, data)

    def _yield_to_loop(self) -> None:
        """Let the loop handle other events before it reads on from a peer that sends without end.

        uvloop reads up to 32 times in a row, which can take a second. A pause stops that.
        """
        if not self.is_reading_paused and not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self.is_reading_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_reading(self) -> None:
        """Leave further bytes in the socket, so that the peer has to wait. Idempotent."""
        if not self.is_reading_paused:
            self.is_reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on after pause_reading(). Idempotent."""
        if self.is_reading_paused:
            self.is_reading_paused = False
            self.transport.resume_reading()

    def _receive_encrypted(self, tls: TlsSession, data: bytes) -> None:
        was_established = tls.is_established
        data = tls.receive(data)
        # The next part of the handshake, an alert, or the reply to a key update.
        if (reply := tls.to_send()) and not self.transport.is_closing():
            self.transport.write(reply)
        # Before the end of the connection is reported: these bytes came first.
        if data:
            # Only here: TLS protocol messages are no bytes of a response, and extend no time limit.
            self._last_received_at = self.loop.time()
            self.bytes_received(data)
        if tls.ended or tls.error is not None:
            self._end_input(InputState.ENDED, tls.error)
        elif reply and self.transport.get_write_buffer_size() > _MAX_UNSENT_TLS_BYTES:
            error = "the server requests TLS replies and does not read them"
            self._end_input(InputState.ENDED, ConnectionFailedError(errno.ECONNABORTED, error))
            self.abort_transport()
        elif not was_established:
            self.wake()

    def _end_input(self, state: InputState, exc: Exception | None) -> None:
        was_open = self.input is InputState.OPEN
        self.input = state
        if was_open:
            if exc is not None:
                self.error = httpx.ReadError(str(exc))
                self.error.__cause__ = exc
            self.input_ended()
        self.wake()
        self._wake_writer()

    # Waiting.

    def wake(self) -> None:
        """Wake the coroutine that waits, if there is one."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, timeout: float | None = None) -> None:
        """Wait for wake(). Raises httpx.ReadTimeout after `timeout` seconds in which no bytes were received."""
        self._waiter = self.loop.create_future()
        if timeout is not None:
            self._last_received_at = self.loop.time()
            self._watch(timeout, self._waiter)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _watch(self, timeout: float, waiter: asyncio.Future[None]) -> None:
        # One timer for each wait, restarted only when it fires: received bytes cost no more than a look at the clock.
        left = self._last_received_at + timeout - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._watch, timeout, waiter)
        elif not waiter.done():
            waiter.set_exception(_read_timeout(timeout))

    def limit_silence(self, timeout: float | None) -> None:
        """Call silence_elapsed() once, after `timeout` seconds in which no bytes were received; None: do not.

        For exchanges without a coroutine. One timer serves all exchanges of a connection: it is replaced only if it
        would come too late.
        """
        self._silence_limit = timeout
        if timeout is not None:
            self._last_received_at = now = self.loop.time()
            if self._silence_timer is None or self._silence_due > now + timeout:
                self._drop_silence_timer()
                self._expect_bytes_until(now + timeout)

    def _expect_bytes_until(self, due: float) -> None:
        self._silence_due = due
        self._silence_timer = self.loop.call_at(due, self._check_silence)

    def _check_silence(self) -> None:
        self._silence_timer = None
        timeout = self._silence_limit
        if timeout is None:
            return
        due = self._last_received_at + timeout
        if due > self.loop.time():
            self._expect_bytes_until(due)
        else:
            self._silence_limit = None
            self.silence_elapsed(_read_timeout(timeout))

    def _drop_silence_timer(self) -> None:
        if self._silence_timer is not None:
            self._silence_timer.cancel()
            self._silence_timer = None

    # Writing.

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Do the TLS handshake with `host`, inside of an earlier session; every later byte is encrypted.

        Raises ssl.SSLError if it fails, OSError if the peer closes the connection during the handshake, and
        ValueError if `host` cannot be a name in a certificate.
        """
        self._tls = tls = TlsSession(context, host, self._tls)
        self.transport.write(tls.to_send())
        while not tls.is_established:
            if tls.error is not None:
                raise tls.error
            if self.input is not InputState.OPEN:
                error = "the server closed the connection during the TLS handshake"
                raise ConnectionFailedError(errno.ECONNRESET, error) from self.error
            await self.wait()

    def write_at_once(self, data: Bytes) -> Bytes:
        """Write as much of `data` as there is room for, and return the rest. Raises httpx.WriteError."""
        rest = data if len(data) <= _WRITE_BYTES else memoryview(data)
        while rest and self._can_write and self.input is InputState.OPEN and not self.transport.is_closing():
            self._write_part(rest[:_WRITE_BYTES])
            rest = rest[_WRITE_BYTES:]
        return rest

    async def write(self, data: Bytes, timeout: float | None) -> bool:
        """Write `data`, waiting while the transport's buffer is full. Return False if the input has ended.

        The peer may have responded before it closed the connection, so its end is no error here. Raises
        httpx.WriteTimeout after `timeout` seconds in which the peer took no bytes, httpx.WriteError if TLS
        cannot send.
        """
        rest = self.write_at_once(data)
        while self.input is InputState.OPEN and (rest or not self._can_write):
            await self._wait_for_room(timeout)
            rest = self.write_at_once(rest)
        return self.input is InputState.OPEN

    def _write_part(self, part: Bytes) -> None:
        try:
            self.transport.write(part if self._tls is None else self._tls.encrypt(part))
        except ssl.SSLError as exc:
            # For example if a server of TLS 1.2 renegotiates while the request is being sent.
            raise httpx.WriteError(f"TLS cannot send: {exc}") from exc

    async def _wait_for_room(self, timeout: float | None) -> None:
        unsent, taken_at = self.transport.get_write_buffer_size(), self.loop.time()
        # A write that failed closes the transport, and then ends the input.
        while self.input is InputState.OPEN and (not self._can_write or self.transport.is_closing()):
            # Whether the peer takes bytes is measured by the write buffer alone.
            timer = None if timeout is None else self.loop.call_later(timeout / 4, self._wake_writer)
            self._writer = self.loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None
                if timer is not None:
                    timer.cancel()
            left = self.transport.get_write_buffer_size()
            if left < unsent:
                unsent, taken_at = left, self.loop.time()
            elif timeout is not None and self.loop.time() - taken_at >= timeout:
                raise httpx.WriteTimeout(f"the server took no bytes for {timeout:g} s")

    def _wake_writer(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    @property
    def can_write(self) -> bool:
        """Whether the transport's buffer has room."""
        return self._can_write

    # Closing.

    @property
    def ended_abruptly(self) -> bool:
        """Whether the connection has ended without the close-notify of TLS: it may have been cut off."""
        return self.input is not InputState.OPEN and self._tls is not None and not self._tls.ended

    def is_down(self) -> bool:
        """Whether the connection has ended, or is about to be closed."""
        return self.input is not InputState.OPEN or bool(self.transport.is_closing())

    def abort_transport(self) -> None:
        """Close the connection at once, without sending buffered bytes. Idempotent."""
        self._drop_silence_timer()
        # asyncio's transport cannot be aborted any more once it has called connection_lost.
        if self.transport is not None and self.input is not InputState.LOST:
            # asyncio closes the socket only in the next iteration of the loop, which under uWSGI without
            # --enable-threads comes with the next request: so the socket is shut down first.
            sockets.shut_down_connection(self.transport)
            self.transport.abort()

    def get_extra_info(self, info: str) -> Any:
        """Return "socket", "ssl_object", "server_addr" or "client_addr", as httpx's network streams do."""
        if info == "ssl_object" and self._tls is not None:
            return self._tls.ssl_object
        return self.transport.get_extra_info(_INFO_NAMES.get(info, info))


def _read_timeout(seconds: float) -> httpx.ReadTimeout:
    return httpx.ReadTimeout(f"no bytes were received for {seconds:g} s")


def _unread_bytes(transport: Any) -> bytes:
    """Return the bytes that came before the connection was lost.

    A server that refuses a request may close the connection while the request is being sent. asyncio closes its side as
    soon as a write fails, and reads no more, so that the response would be lost.
    """
    connection = transport.get_extra_info("socket")
    # Both loops close the socket after connection_lost(). A fake connection has none.
    if connection is None or connection.fileno() < 0:
        return b""
    return sockets.unread_bytes(connection.fileno(), READ_BYTES)
