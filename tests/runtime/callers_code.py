"""Code of the caller's that raises: functions, flags, bodies, auths, transports, for the tests of callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any, NamedTuple

import httpx

from tests.support import IS_DEFAULT

__all__ = [
    "ENDS",
    "EVENT_STREAM",
    "FAILING",
    "KINDS",
    "KINDS_HERE",
    "Auth",
    "Fault",
    "Flag",
    "Interrupted",
    "Request",
    "Transport",
]

EVENT_STREAM = {"content-type": "text/event-stream"}


class Interrupted(BaseException):
    """Like gevent.Timeout, Streamlit's StopException and others."""


KINDS: list[type[BaseException]] = [
    ZeroDivisionError,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    asyncio.CancelledError,
    StopIteration,
    StopAsyncIteration,
    MemoryError,
    RecursionError,
    Interrupted,
]
# One of each kind of handler suffices in the other configurations.
KINDS_HERE = KINDS if IS_DEFAULT else [ZeroDivisionError, SystemExit, asyncio.CancelledError]


class Fault:
    """Raises its exception while it is armed."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind
        self.is_armed = True

    def __call__(self, *_: Any) -> Any:
        if self.is_armed:
            # A new instance each time.
            raise self.kind

    async def aio(self, *_: Any) -> None:
        self()


class Request(NamedTuple):
    """The arguments of request_sse or arequest_sse."""

    options: dict[str, Any]
    # Arguments of an httpx.AsyncClient; None for the library's own client.
    client: dict[str, Any] | None = None
    # Whether the failure happens after the headers.
    is_late: bool = False


class Flag:
    """Raises on a loop, but not on a consumer's thread, and not at the first check, inside the call."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.looks = 0

    def is_set(self) -> bool:
        self.looks += 1
        if self.looks > 1 and asyncio._get_running_loop() is not None:
            self.fault()
        return False


class AuthAfterTheAnswer(httpx.Auth):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        try:
            yield request
        finally:
            self.fault()


class File:
    """For `content` it is read in a thread, for `files` on the loop."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError("read by read()")

    def read(self, size: int = -1) -> bytes:
        self.fault()
        return b""


class Auth(httpx.Auth):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        self.fault()
        yield request


class Transport(httpx.AsyncBaseTransport):
    """Raises when a request is sent, when the response is read, or when either is closed."""

    def __init__(self, fault: Fault, where: str) -> None:
        self.fault = fault
        self.where = where

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.where == "request":
            self.fault()
        return httpx.Response(200, headers=EVENT_STREAM, stream=Answer(self), extensions=self.extensions())

    def extensions(self) -> dict[str, Any]:
        return {"network_stream": self} if self.where == "network stream" else {}

    def get_extra_info(self, name: str) -> None:
        self.fault()

    async def aclose(self) -> None:
        if self.where == "closing the client":
            self.fault()


class Answer(httpx.AsyncByteStream):
    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            yield b"data: 1\n\n"
            if self.transport.where == "read":
                self.transport.fault()
            if self.transport.where == "read, after a wait":
                await asyncio.sleep(0)
                self.transport.fault()
            await asyncio.get_running_loop().create_future()
        finally:
            if self.transport.where == "closing the generator":
                self.transport.fault()

    async def aclose(self) -> None:
        if self.transport.where == "closing the answer":
            self.transport.fault()


def sync_body(fault: Fault) -> Iterator[bytes]:
    yield b"part"
    fault()


async def async_body(fault: Fault) -> AsyncIterator[bytes]:
    yield b"part"
    fault()


class IteratorBody:
    """Not a generator, in which Python would replace a StopIteration."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __aiter__(self) -> IteratorBody:
        return self

    async def __anext__(self) -> bytes:
        self.fault()
        raise AssertionError("the fault must be armed")


class NotIterableBody:
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __aiter__(self) -> AsyncIterator[bytes]:
        self.fault()
        raise AssertionError("the fault must be armed")


class AsyncFile:
    """Like the files of anyio and aiofiles."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise AssertionError("read by aread()")

    async def aread(self, size: int) -> bytes:
        self.fault()
        return b""


FAILING: dict[str, Callable[[Fault], Request]] = {
    "cancel flag": lambda fault: Request({"cancel": Flag(fault)}, is_late=True),
    "generator as body": lambda fault: Request({"content": sync_body(fault)}),
    "asynchronous generator as body": lambda fault: Request({"content": async_body(fault)}),
    "asynchronous iterator as body": lambda fault: Request({"content": IteratorBody(fault)}),
    "body that cannot be iterated over": lambda fault: Request({"content": NotIterableBody(fault)}),
    "file as body": lambda fault: Request({"content": File(fault)}),
    "file of a form": lambda fault: Request({"files": {"file": ("name", File(fault), "text/plain")}}),
    "asynchronous file as body": lambda fault: Request({"content": AsyncFile(fault)}),
    "auth": lambda fault: Request({"auth": Auth(fault)}),
    "auth, after the answer": lambda fault: Request({"auth": AuthAfterTheAnswer(fault)}),
    "function as auth": lambda fault: Request({"auth": fault}),
    "trace": lambda fault: Request({"extensions": {"trace": fault.aio}}),
    "request hook": lambda fault: Request({}, {"event_hooks": {"request": [fault.aio]}}),
    "response hook": lambda fault: Request({}, {"event_hooks": {"response": [fault.aio]}}),
    "transport": lambda fault: Request({}, {"transport": Transport(fault, "request")}),
    "answer": lambda fault: Request({}, {"transport": Transport(fault, "read")}, is_late=True),
    "answer, after a wait": lambda fault: Request({}, {"transport": Transport(fault, "read, after a wait")}, True),
}
# Combinations that equal the normal end of an asynchronous iterator.
ENDS = {("asynchronous iterator as body", StopAsyncIteration)}
