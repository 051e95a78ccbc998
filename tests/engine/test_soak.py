"""A soak of a few seconds: threads, descriptors and streams. Memory takes minutes (soak.py)."""

from __future__ import annotations

import pytest

from .soak import more_than_before, soak


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:.* was dropped while it was open:ResourceWarning")
def test_streams_leave_nothing_behind() -> None:
    samples = soak(0, 1, streams=40, round_streams=200)
    assert more_than_before(samples) == []
