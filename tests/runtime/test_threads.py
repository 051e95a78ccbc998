"""OneShotEvent, where a thread sets it while another begins to wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from sseqbridge._runtime.threads import OneShotEvent

pytestmark = pytest.mark.configurations("default", "plain")


@pytest.mark.parametrize("is_set_in_between", [False, True])
def test_event_that_is_set_around_notify_wakes_once(is_set_in_between: bool) -> None:
    event, woken = OneShotEvent(), []

    class Racing(deque[Callable[[], object]]):
        """Another thread sets the event after a waiter was appended."""

        def append(self, wake: Callable[[], object], /) -> None:
            super().append(wake)
            if is_set_in_between:
                event.set()

    event._waiters = Racing()
    if not is_set_in_between:
        event.set()
    event.notify(lambda: woken.append(True))
    assert woken == [True]
    assert event.wait(0)
