"""The checks of a relay's options."""

from __future__ import annotations

from typing import Any

import pytest

from sseqbridge import (
    ServerSentEvent,
    UsageError,
    relay,
)


@pytest.mark.parametrize("done", [ServerSentEvent("a\nb"), "\ud800"])
def test_done_event_must_be_encodable(done: Any) -> None:
    with pytest.raises(UsageError):
        relay.frames([], done=done)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "5", True])
@pytest.mark.parametrize("name", ["heartbeat", "probe"])
def test_seconds_must_be_above_zero(name: str, seconds: Any) -> None:
    options: dict[str, Any] = {name: seconds}
    with pytest.raises(UsageError, match=f"`{name}` must be a number of seconds above 0"):
        relay.frames([], **options)


@pytest.mark.parametrize(
    ("option", "message"),
    [({"map": "x"}, "`map` must be .*, got str"), ({"done": 1.5}, "`done` must be .*, got float")],
)
def test_type_of_map_and_done_is_checked(option: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        relay.frames([], **option)


@pytest.mark.parametrize(("name", "hint"), [("heartbeats", " Did you mean 'heartbeat'?"), ("qqq", "")])
def test_unknown_option_names_the_one_that_is_like_it(name: str, hint: str) -> None:
    options: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError) as caught:
        relay.frames([], **options)
    assert str(caught.value) == f"frames() got an unexpected keyword argument '{name}'.{hint}"


@pytest.mark.parametrize("refusal", ["passes", 5, None])
def test_refusal_must_be_known_or_a_function(refusal: Any) -> None:
    with pytest.raises(UsageError, match='`refusal` must be "error", "pass" or a function'):
        relay.flask.stream_response([], refusal=refusal)
