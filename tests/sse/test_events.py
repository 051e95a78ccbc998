"""Events and comments as values."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from sseqbridge._sse.events import Comment, RestartEvent, ServerSentEvent, copied


def test_event_has_the_defaults_of_the_standard() -> None:
    event = ServerSentEvent()
    assert (event.event, event.data, event.id, event.retry) == ("message", "", "", None)


def test_comment_is_empty_by_default() -> None:
    assert Comment().text == ""


def test_json_decodes_the_data() -> None:
    assert ServerSentEvent(data='{"a": [1, null]}').json() == {"a": [1, None]}


def test_json_raises_what_json_raises() -> None:
    with pytest.raises(json.JSONDecodeError):
        ServerSentEvent(data="{").json()


def test_items_compare_by_value() -> None:
    assert ServerSentEvent("a", "b", "c", 1.0) == ServerSentEvent("a", "b", "c", 1.0)
    assert ServerSentEvent("a") != ServerSentEvent("b")
    assert Comment("a") == Comment("a")
    other: object = ServerSentEvent(data="a")
    assert Comment("a") != other


@pytest.mark.parametrize("item", [ServerSentEvent("a", "b", "c", 1.5), Comment("a")], ids=repr)
def test_items_are_small_and_survive_copying(item: ServerSentEvent | Comment) -> None:
    assert not hasattr(item, "__dict__")
    assert copy.copy(item) == item
    assert copy.deepcopy(item) == item
    assert pickle.loads(pickle.dumps(item)) == item


@pytest.mark.parametrize("item", [ServerSentEvent("a", "b", "c", 1.5), RestartEvent("restart"), Comment("a")], ids=repr)
def test_copied_item_is_another_object_of_the_same_kind(item: ServerSentEvent | Comment) -> None:
    copy_of_item = copied(item)
    assert copy_of_item is not item
    assert type(copy_of_item) is type(item)
    assert copy_of_item == item


def test_items_have_a_repr() -> None:
    assert repr(ServerSentEvent("a", "b", "c", 1.5)) == "ServerSentEvent(event='a', data='b', id='c', retry=1.5)"
    assert repr(Comment("a")) == "Comment(text='a')"
