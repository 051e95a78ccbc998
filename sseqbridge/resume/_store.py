"""What a log is kept in: what a store does, and the terms that it does it on.

Rule: all of a store's coroutines run in one loop, and each may be asked again where an answer did
not come: what was done already is then not done twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sseqbridge._exceptions import LogError

from ._entries import Entry, Position

__all__ = ["Claim", "OutageError", "StaleError", "Store", "Tail", "Terms", "Token", "Watch"]


@dataclass(frozen=True)
class Terms:
    """How a log is kept; times in seconds."""

    lease: float
    ttl: float
    max_events: int | None
    abandon_after: float | None
    outage: float

    # A producer that dies is noticed by a look after its lease has run out: both within `lease`.
    @property
    def held_for(self) -> float:
        """For how long a lease is given."""
        return self.lease * 0.7

    @property
    def renewed_every(self) -> float:
        """How often a producer renews its own."""
        return self.lease * 0.2

    @property
    def looked_every(self) -> float:
        """How often readers look whether there is one."""
        return self.lease * 0.2

    @property
    def present_for(self) -> float:
        """For how long a process counts as a reader, once it has said so."""
        return self.looked_every * 3


class OutageError(Exception):
    """The store cannot be reached, or refuses work for a while. The cause is its own error."""


class StaleError(Exception):
    """The token is not the one any more: another producer, or a cancel, came after it."""


class Token(NamedTuple):
    """Who may write a stream."""

    key: str
    fence: int
    owner: str

    def __str__(self) -> str:
        return f"{self.fence}:{self.owner}"


class Claim(NamedTuple):
    """What became of an attempt to be a stream's producer.

    `state` is "elected" (with the fencing token), "none" (nothing there, and none was to begin),
    "live", "ended", or "lost" (begun, not ended, and nobody writes it). `last` is where the last
    entry stands.
    """

    state: str
    fence: int
    last: Position | None


class Watch(NamedTuple):
    """How a stream stands: whether somebody holds its lease, and where its last entry stands.

    `error` is why the store could not look at this stream, None if it could.
    """

    is_held: bool
    last: Position | None
    error: LogError | None = None


class Tail(Protocol):
    """Waits for what comes, for several streams at once."""

    async def read(self, positions: Mapping[str, Position]) -> Sequence[tuple[str, list[Entry] | LogError]]:
        """Return what comes after the positions, waiting for it a while; nothing where it was woken.

        A stream that the store cannot read has an error in place of entries. Raises LogError if it
        can read none.
        """

    def wake(self) -> None:
        """End the wait of a `read` that is under way, or else the next one's."""


class Store(Protocol):
    """What keeps a log's streams."""

    async def claim(self, key: str, owner: str, *, may_begin: bool, takeover: bool) -> Claim:
        """Try to become the producer. `owner` is this attempt's own."""

    async def append(self, token: Token, number: int, entries: Sequence[Mapping[str, str]]) -> None:
        """Write entries, of which the first has this number, and renew the lease. Raises StaleError."""

    async def end(self, token: Token, number: int, fields: Mapping[str, str]) -> None:
        """Write the last entry, and give the lease back. Raises StaleError."""

    async def renew(self, token: Token) -> int:
        """Renew the lease, and return how many processes read. Raises StaleError."""

    async def release(self, token: Token) -> None:
        """Give the lease back."""

    async def cancel(self, key: str, owner: str) -> bool:
        """End a stream that has not ended; False where there is none. `owner` is this attempt's own."""

    async def delete(self, key: str) -> bool:
        """Delete a stream; False where there is none."""

    async def read(self, key: str, after: Position, count: int) -> list[Entry]:
        """Return the first entries after a position, `count` at most."""

    async def watch(self, keys: Sequence[str], reader: str) -> list[Watch]:
        """Tell that the process `reader` reads these streams, and return how each stands."""

    async def leave(self, key: str, reader: str) -> None:
        """Tell that it does not read this one any more."""

    def group_of(self, key: str) -> str:
        """Return what the streams have in common that one Tail can wait for."""

    def new_tail(self) -> Tail:
        """Return what waits for the streams of one group."""

    async def aclose(self) -> None:
        """Give back what the store holds."""
