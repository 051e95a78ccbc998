"""The script that draws the pictures of README.md."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.examples import picture
from tests.support import ROOT

pytestmark = pytest.mark.browser


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_pictures_are_drawn_again_with_the_same_size(tmp_path: Path) -> None:
    drawn = picture.draw(tmp_path)
    assert [file.name for file in drawn] == [f"chat-{scheme}.png" for scheme in picture.SCHEMES]
    light, dark = (file.read_bytes() for file in drawn)
    assert light != dark
    for file in drawn:
        kept = (ROOT / "examples/images" / file.name).read_bytes()
        assert size_of(file.read_bytes()) == size_of(kept) == (1350, 960)
        assert len(kept) < 150_000
