"""The search of a Starlette relay for the requests that a function or iterable refers to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request

from sseqbridge import relay

REQUEST = Request({"type": "http"})


def found_in(*objects: object) -> list[Request]:
    """Return the requests that a relay finds for a function with a variable that refers to the objects."""
    response: Any = relay.starlette.stream_response(lambda: objects)
    return list(response.requests())


class Database:
    """Has an attribute of every name, like the database of an ODM or a proxy of XML-RPC."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"a query of {name}")


class Lazy:
    """Like an object that is made when it is used first."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("made by the search")


def test_objects_of_the_call_are_not_searched() -> None:
    call = [REQUEST]
    response: Any = relay.starlette.stream_response(lambda: call)
    assert response.requests({}, call) == []


@pytest.mark.parametrize("kind", [Database, Lazy])
def test_search_calls_no_code_of_the_application(kind: Callable[[], object]) -> None:
    assert found_in(kind(), [REQUEST]) == [REQUEST]


@pytest.mark.parametrize("make", [list, tuple, set, lambda objects: dict(enumerate(objects))])
def test_long_container_is_not_searched(make: Callable[[list[object]], object]) -> None:
    """A search of a million items would hold up the event loop."""
    assert found_in(make([REQUEST])) == [REQUEST]
    assert found_in(make([*range(2000), REQUEST])) == []
