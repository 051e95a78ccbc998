"""The fuzzer: its corpus, a short run, and that it detects a wrong reader.

`python -m tests.fuzz INPUTS` is a long run.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from sseqbridge._http.h1_bodies import ChunkedBody
from sseqbridge._http.h1_heads import HeadReader
from sseqbridge._sse import parser
from sseqbridge._sse.json_lines import JSONLinesParser
from sseqbridge._sse.parser import EventStreamParser
from tests.examples.commands import documented
from tests.support import ROOT

from .corpus import kept
from .targets import SHORT_BYTES, TARGETS


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("short_bytes", [parser.SHORT_BYTES, SHORT_BYTES])
def test_corpus_is_read_alike(target: str, short_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "SHORT_BYTES", short_bytes)
    inputs = kept(target)
    assert len(inputs) > 30
    for data in inputs:
        # In its own chunks, and in others.
        for first in (data[:1], b"\0", b"\1", b"\2"):
            TARGETS[target].check(first + data[1:])


def careless(feed: Callable[[Any, bytes], Any]) -> Callable[[Any, bytes], Any]:
    """Return a feed method that loses the line feed at the end of a chunk."""
    return lambda reader, chunk: feed(reader, chunk.removesuffix(b"\n"))


@pytest.mark.parametrize(
    ("target", "kind"),
    [("parser", EventStreamParser), ("lines", JSONLinesParser), ("head", HeadReader), ("framing", ChunkedBody)],
)
def test_corpus_detects_a_careless_reader(target: str, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "feed", careless(kind.feed))
    found = [data for data in kept(target) if TARGETS[target].is_found(data)]
    assert found
    data = TARGETS[target].shrunk(found[-1])
    assert TARGETS[target].is_found(data)
    assert len(data) < len(found[-1])


@pytest.mark.heavy
@pytest.mark.parametrize(("target", "seconds"), [("parser", 2), ("lines", 2), ("head", 2), ("framing", 2)])
def test_short_run_finds_no_difference(target: str, seconds: int) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris does not support this Python")
    command = [*documented("python -m tests.fuzz 10000000").words, "--target", target, "--seconds", str(seconds)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    result = re.fullmatch(rf"{target}: ([\d,]+) inputs, [\d,]+ a second, no difference\n", run.stdout)
    assert result is not None
    assert int(result[1].replace(",", "")) > len(kept(target))
