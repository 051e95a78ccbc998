"""The script that draws the pictures of README.md."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.examples import picture
from tests.examples.commands import documented, run_program
from tests.support import ROOT

pytestmark = pytest.mark.browser


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_pictures_are_drawn_again_with_the_same_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_program(documented("python -m tests.examples.picture"), str(tmp_path))
    drawn = [tmp_path / f"chat-{scheme}.png" for scheme in picture.SCHEMES]
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [file.name for file in drawn]
    light, dark = (file.read_bytes() for file in drawn)
    assert light != dark
    for file in drawn:
        kept = (ROOT / "examples/images" / file.name).read_bytes()
        assert size_of(file.read_bytes()) == size_of(kept) == (1350, 960)
        assert len(kept) < 150_000
