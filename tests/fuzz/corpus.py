"""The corpus: the smallest set of inputs that reaches all known code, one file per target.

In the files an input is text, one character per byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

__all__ = ["kept", "write"]

_DIRECTORY = Path(__file__).parents[1] / "data" / "corpus"


def kept(target: str) -> list[bytes]:
    """Return the corpus of a target."""
    return [text.encode("latin-1") for text in json.loads((_DIRECTORY / f"{target}.json").read_text("utf-8"))]


def write(target: str, inputs: Iterable[bytes]) -> None:
    """Replace the corpus of a target."""
    texts = [data.decode("latin-1") for data in sorted(set(inputs), key=lambda data: (len(data), data))]
    (_DIRECTORY / f"{target}.json").write_text(json.dumps(texts, indent=0) + "\n", "utf-8")
