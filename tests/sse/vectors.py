"""The parsing vectors of tests/data/vectors: byte streams, and the events that they contain.

In the files a stream is text, `input`, or if it is not UTF-8, `bytes`: one character per byte.
`see` names the corresponding file in the eventsource folder of web-platform-tests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sseqbridge._sse.events import ServerSentEvent

__all__ = ["VECTORS", "Vector"]


@dataclass(frozen=True)
class Vector:
    """A stream, and its expected events. `comments` is None if the vector does not define them."""

    name: str
    stream: bytes
    events: list[ServerSentEvent]
    comments: list[str] | None
    last_event_id: str
    retry: float | None
    see: str | None

    def __str__(self) -> str:
        return self.name


def _load(path: Path) -> list[Vector]:
    return [
        Vector(
            name=entry["name"],
            stream=entry["bytes"].encode("latin-1") if "bytes" in entry else entry["input"].encode(),
            events=[ServerSentEvent(*event) for event in entry["events"]],
            comments=entry.get("comments"),
            last_event_id=entry["last_event_id"],
            retry=entry["retry"],
            see=entry.get("see"),
        )
        for entry in json.loads(path.read_text("utf-8"))
    ]


_DATA = Path(__file__).parents[1] / "data" / "vectors"
VECTORS = [vector for path in sorted(_DATA.glob("*.json")) for vector in _load(path)]
