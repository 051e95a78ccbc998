"""RedisLog: a log whose streams are Redis streams, for any number of processes and machines.

On a plain Redis a process has two connections, however many streams it reads and writes: one XREAD waits
for all streams, and the other connection carries all other commands. On a Cluster, where one XREAD cannot
span slots, each stream has an XREAD of its own.

Callers' threads make the log and its store; the rest runs on the loop thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from sseqbridge._checks import name_of_type
from sseqbridge._exceptions import UsageError
from sseqbridge._signatures import signature_with

from ._arguments import LogOptions
from ._log import Log

try:
    import redis.asyncio
    from redis.asyncio.connection import parse_url
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    from ._redis_client import CLUSTER_ADVICE, SENTINEL_ADVICE, SYNCHRONOUS, check_max_connections
    from ._redis_store import RedisStore
except ImportError as exc:
    raise ImportError("RedisLog needs redis-py: pip install 'sseqbridge[redis]'") from exc

try:
    from redis.driver_info import DriverInfo
except ImportError:
    # Before redis-py 7.
    _DRIVER = {}
else:
    # Made once, here: redis-py would read its own version from disk for each connection, on the loop thread.
    _DRIVER = {"driver_info": DriverInfo()}

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._redis_client import Client, ClientFactory
    from ._store import LogSettings, Store

__all__ = ["RedisLog"]

_SOCKET_SECONDS = 10.0
_NO_LIMIT = 2**31
# Schemes that other clients have for these, and the advice.
_ADVICE = {"sentinel": SENTINEL_ADVICE, "cluster": CLUSTER_ADVICE}


class RedisLog(Log):
    """A log in Redis 6.2 or later, or a compatible server, for any number of processes and machines.

        log = RedisLog.from_url("redis://localhost")

    `client` is a function that returns a new redis.asyncio.Redis or RedisCluster; the threads that open
    streams call it. Its `socket_timeout` must be above 2 seconds, its `max_connections` above 1. It should not
    retry: the log does. With Sentinels: `lambda: Sentinel([...], socket_timeout=10).master_for("mymaster")`, with
    redis.asyncio.sentinel.Sentinel.
    All keys in Redis begin with `prefix`: `{prefix}:{key}:...`, with the key in braces, as its hash tag.
    The other `options` are those of Log: `lease`, `ttl`, `max_events`, `abandon_after`, `outage` (times in seconds) and
    `bridge`.

    Raises UsageError for arguments that cannot work. Does not connect yet.
    """

    def __init__(
        self,
        client: ClientFactory,
        *,
        prefix: str = "sseqbridge",
        **options: Unpack[LogOptions],
    ) -> None:
        if not _may_make_clients(client):
            raise UsageError(
                f"`client` must be a function that returns a new redis.asyncio.Redis, got {_name_of(client)}. "
                'Pass one: RedisLog(lambda: redis.asyncio.Redis(host="..."))'
            )
        if not isinstance(prefix, str) or not prefix.isprintable() or not prefix or "{" in prefix or "}" in prefix:
            raise UsageError(f"`prefix` must be a non-empty str without braces and control characters, got {prefix!r}")
        self._client = client
        self._prefix = prefix
        super().__init__(**options)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        cluster: bool = False,
        client_options: Mapping[str, Any] | None = None,
        prefix: str = "sseqbridge",
        **options: Unpack[LogOptions],
    ) -> Self:
        """Return a log in the Redis at a `url` of redis-py's form: `redis://`, `rediss://`, `unix://`.

        `cluster=True` is for a Redis Cluster, with the URL of any node. With Sentinels, pass a function that calls
        `Sentinel.master_for` to RedisLog instead. redis-py's client takes `client_options`. `prefix`, `lease`, `ttl`,
        `max_events`, `abandon_after`, `outage` (times in seconds) and `bridge` are those of RedisLog.

        Raises UsageError for a wrong URL. Does not connect yet.
        """
        own = {"socket_timeout": _SOCKET_SECONDS, "socket_connect_timeout": 5.0, **_DRIVER}
        if cluster:
            # Each stream has a connection for its XREAD.
            own["max_connections"] = _NO_LIMIT
        all_options = {**own, **(client_options or {})}
        # redis-py lets the options in the URL override the others.
        check_max_connections({**all_options, **_parsed(url)}.get("max_connections"))

        def client() -> Client:
            if cluster:
                return redis.asyncio.RedisCluster.from_url(url, **all_options)
            # Without redis-py's retries: the log retries for `outage` seconds.
            return redis.asyncio.Redis.from_url(url, **{"retry": Retry(NoBackoff(), 0), **all_options})

        return cls(client, prefix=prefix, **options)

    def _store_factory(self) -> Callable[[LogSettings], Store]:
        return partial(RedisStore, self._client, self._prefix)


def _describe(method: Callable[..., object]) -> None:
    method.__signature__ = signature_with(method, LogOptions)  # type: ignore[attr-defined]


_describe(RedisLog.__init__)
_describe(vars(RedisLog)["from_url"].__func__)


def _may_make_clients(client: object) -> bool:
    """Whether `client` can be called, and is not a class of synchronous clients."""
    return callable(client) and not (isinstance(client, type) and issubclass(client, SYNCHRONOUS))


def _name_of(client: object) -> str:
    return f"the class {name_of_type(client)}" if isinstance(client, type) else name_of_type(type(client))


def _parsed(url: str) -> Mapping[str, Any]:
    """Return the options in a URL. Raises UsageError, without the URL, which may hold a password."""
    scheme, _, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    for kind, advice in _ADVICE.items():
        if kind in scheme.lower():
            raise UsageError(f"`url` must be a Redis URL of one server, got one for a {kind.title()}. {advice}")
    if "," in rest.partition("/")[0].rpartition("@")[2]:
        raise UsageError(
            f"`url` must be a Redis URL of one server, got several hosts. For a Cluster: {CLUSTER_ADVICE}. "
            f"For Sentinels: {SENTINEL_ADVICE}"
        )
    try:
        return parse_url(url)
    except (ValueError, TypeError, AttributeError):
        raise UsageError("`url` must be a Redis URL. Pass one like redis://user:password@host:6379/0") from None
