"""The interface of a log's store, its values, and the settings of a log.

All coroutines of a store run on one event loop. Each call is idempotent: it may be repeated if its reply
was lost, and has no second effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from sseqbridge._exceptions import LogError

from ._entries import Entry, Position

__all__ = [
    "ANY_TTL",
    "UNKNOWN_TTL",
    "Claim",
    "ClaimState",
    "FencingToken",
    "Liveness",
    "LogSettings",
    "MissingLease",
    "OutageError",
    "StaleTokenError",
    "Store",
    "Tail",
]


# The TTL of a fence that the store does not keep, or has evicted.
UNKNOWN_TTL = -1
# Above every TTL.
ANY_TTL = 2**53


@dataclass(frozen=True)
class LogSettings:
    """The settings of a log, in seconds; see Log. Readers notice a dead producer within `lease`.

    So the TTL of a lease, the interval of the readers' checks and the grace, in which a live producer renews a lease
    that the store has evicted, add up to less than `lease`.
    """

    lease: float
    ttl: float
    max_events: int | None
    abandon_after: float | None
    outage: float

    @property
    def lease_ttl(self) -> float:
        """The TTL of a producer's lease."""
        return self.lease * 0.55

    @property
    def renewal_interval(self) -> float:
        """The time between two renewals of a lease."""
        return self.lease * 0.18

    @property
    def grace(self) -> float:
        """How long a lease must be missing to be lost: a renewal interval, and some time for the renewal itself."""
        return self.renewal_interval * 1.5

    @property
    def liveness_interval(self) -> float:
        """The time between two checks of the producers, which are heartbeats of the readers too."""
        return self.lease * 0.15

    @property
    def reader_ttl(self) -> float:
        """The time after which a process without a heartbeat no longer counts as a reader."""
        return self.liveness_interval * 3

    @property
    def retention(self) -> float:
        """The TTL of a stream that was just written."""
        return max(self.ttl, self.lease)


class OutageError(Exception):
    """The store is unreachable, or refuses work for a while. The cause is the store's own error."""


class StaleTokenError(Exception):
    """The fencing token is stale: another producer was elected, or the stream was cancelled."""


class FencingToken(NamedTuple):
    """The right to write one stream: a newer fence makes older tokens stale. `owner` identifies the claim."""

    key: str
    fence: int
    owner: str

    def __str__(self) -> str:
        return f"{self.fence}:{self.owner}"


class ClaimState(str, Enum):
    """The result of a claim: elected, or the state of the stream."""

    ELECTED = "elected"
    # There is no stream, and the claim was not allowed to begin one.
    NONE = "none"
    # Another producer holds the lease.
    LIVE = "live"
    ENDED = "ended"
    # The stream has begun and not ended, and no producer holds the lease.
    LOST = "lost"


class Claim(NamedTuple):
    """The result of an attempt to become a stream's producer.

    `fence` is that of the new token if the claim was elected, else 0. `last` is the position of the last entry.
    `begins` is True if an elected producer begins the stream, False if it takes the stream over. `is_certain` is True
    if the state LOST cannot be due to an evicted lease; `fence_ttl` is as in Liveness. With the state NONE, `deleted`
    is the position of the entry that an earlier stream left when it was deleted, if there is one.
    """

    state: ClaimState
    fence: int
    last: Position | None
    begins: bool = False
    is_certain: bool = False
    fence_ttl: int = UNKNOWN_TTL
    deleted: Position | None = None


class Liveness(NamedTuple):
    """Whether a producer holds a stream's lease, and the position of the stream's last entry.

    A lease that is not held was released by the producer if `is_certain` is True; else the store may have evicted it.
    Then `fence_ttl` is how long the fence will be kept, in milliseconds; each renewal sets it to the same value.
    `error` is the reason why the store could not check this stream; None if it could.
    """

    is_held: bool
    last: Position | None
    error: LogError | None = None
    is_certain: bool = False
    fence_ttl: int = UNKNOWN_TTL


class MissingLease(NamedTuple):
    """A stream whose lease was seen missing at the time `since`, and the TTL of its fence then."""

    since: float
    fence_ttl: int

    def longest_ttl(self, now: float, settings: LogSettings) -> int:
        """Return the longest TTL that the fence can have now if the lease was not renewed since."""
        # Without the slack, the time between the store's replies would have to be exact.
        slack = settings.renewal_interval / 4
        return round(self.fence_ttl - 1000 * (now - self.since - slack))

    def was_renewed(self, fence_ttl: int, now: float, settings: LogSettings) -> bool:
        """Whether a fence with this TTL was renewed since: the producer lives, and the store has evicted its lease."""
        return fence_ttl > self.longest_ttl(now, settings) and UNKNOWN_TTL not in (fence_ttl, self.fence_ttl)


class Tail(Protocol):
    """Waits for new entries of several streams at once."""

    async def read(self, positions: Mapping[str, Position]) -> Sequence[tuple[str, list[Entry] | LogError]]:
        """Return the entries after the positions, by key; wait for the first for a while, or until `wake`.

        A stream that the store cannot read has an error in place of entries. Raises LogError if the store
        can read none.
        """

    def wake(self) -> None:
        """End the wait of the current `read`, or of the next one."""

    async def aclose(self) -> None:
        """Release what the tail holds; `read` is not called any more."""


class Store(Protocol):
    """Holds the streams of a log."""

    async def claim(
        self, key: str, owner: str, *, may_begin: bool, takeover: bool, longest_ttl: int | None = ANY_TTL
    ) -> Claim:
        """Try to become the producer. `owner` is unique to this attempt.

        `takeover` is about a stream whose producer is lost, or was refused by the upstream. A missing lease is lost
        if the TTL of the fence is not above `longest_ttl`; with None, only if the producer has released it.
        """

    async def append(self, token: FencingToken, number: int, entries: Sequence[Mapping[str, str]]) -> None:
        """Write entries, the first under `number`, and renew the lease. Raises StaleTokenError."""

    async def end(self, token: FencingToken, number: int, fields: Mapping[str, str]) -> None:
        """Write the last entry and release the lease. Raises StaleTokenError."""

    async def renew(self, token: FencingToken) -> int:
        """Renew the lease, and return the number of processes that read. Raises StaleTokenError."""

    async def release(self, token: FencingToken) -> None:
        """Release the lease."""

    async def cancel(self, key: str, owner: str) -> bool:
        """End a stream that has not ended; False if there is none. `owner` is unique to this attempt."""

    async def delete(self, key: str, owner: str = "") -> bool:
        """Delete a stream; False if there is none. `owner` is unique to this attempt.

        For `ttl` the stream consists of one entry (`deleted_fields`), which ends its readers and its producer.
        """

    async def read(self, key: str, after: Position, count: int) -> list[Entry]:
        """Return the first entries after a position, `count` at most."""

    async def heartbeat(self, keys: Sequence[str], reader: str) -> list[Liveness]:
        """Record that the process `reader` reads these streams, and return the liveness of each."""

    async def remove_reader(self, key: str, reader: str) -> None:
        """Record that the process `reader` no longer reads this stream."""

    def group_of(self, key: str) -> str:
        """Return the name of the group of streams that one Tail can wait for."""

    def new_tail(self) -> Tail:
        """Return a Tail for the streams of one group."""

    async def aclose(self) -> None:
        """Close the store's connections."""
