"""Which of the log's errors a Redis error is.

Redis begins an error reply with a code, such as READONLY. redis-py has a class for some codes, and then
leaves the code out of the message; Redis 6.2 puts the code behind where in a script the error arose.
`code_of` is the only function that knows of it; everything else goes by the code.

Rule: plain values. Nothing here knows a connection.
"""

from __future__ import annotations

import re

from redis import exceptions

from sseqbridge._exceptions import LogAccessError, LogError, LogFullError

from ._store import OutageError

__all__ = ["DemotedError", "UnknownScriptError", "code_of", "error_of"]

# The codes that redis-py has a class for. (The more special classes first.)
_CODES: dict[type[Exception], str] = {
    exceptions.ReadOnlyError: "READONLY",
    exceptions.BusyLoadingError: "LOADING",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.MovedError: "MOVED",
    exceptions.AskError: "ASK",
    exceptions.NoScriptError: "NOSCRIPT",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.AuthenticationError: "WRONGPASS",
    exceptions.AuthorizationError: "NOPERM",
}
# READONLY ..., ERR Error running script (call to f_<sha>): @user_script:3: -READONLY ..., user_script:3: READONLY ...
_CODE = re.compile(
    r"(?:ERR )?(?:Error running script \(call to \w+\): ?)?(?:@?\w+: ?[0-9]+: ?)*-?([A-Z][A-Z0-9]+)(?: |$)"
)

# The server is a replica now: the connection leads to the wrong one.
_DEMOTED = frozenset({"READONLY", "UNBLOCKED", "MASTERDOWN"})
# It refuses for a while: it starts, has no disk or no replica, runs a script, fails over, or moves slots.
_FOR_A_WHILE = frozenset({"LOADING", "MISCONF", "NOREPLICAS", "BUSY", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK"})
_REFUSED = frozenset({"WRONGPASS", "NOAUTH", "NOPERM"})


class DemotedError(OutageError):
    """The master has become a replica: connections have to be made anew, to find the new master."""


class UnknownScriptError(Exception):
    """Redis does not know a script by its name."""


def code_of(exc: Exception) -> str:
    """Return the code of a Redis error reply, such as "READONLY"; "" if it has none, or was no reply."""
    for kind, code in _CODES.items():
        if isinstance(exc, kind):
            return code
    match = _CODE.match(str(exc)) if isinstance(exc, exceptions.ResponseError) else None
    return "" if match is None else match[1]


def error_of(exc: Exception) -> Exception:
    """Return the log's error for one of redis-py's, or of the network's."""
    code = code_of(exc)
    text = f"{type(exc).__name__}: {exc}"
    if code in _DEMOTED:
        return DemotedError(text)
    if code in _FOR_A_WHILE:
        return OutageError(text)
    if code in _REFUSED:
        return LogAccessError(f"Redis refuses the credentials, or what they may do ({text})")
    if code == "OOM":
        return LogFullError(f"Redis has no memory left: raise maxmemory, or lower ttl or max_events ({text})")
    if code == "NOSCRIPT":
        return UnknownScriptError()
    if isinstance(exc, _NETWORK):
        return OutageError(text)
    return LogError(f"Redis does not do what a log needs ({text})")


# No reply at all, or a Cluster of which no node can be found that has the slot.
_NETWORK = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterError,
    exceptions.RedisClusterException,
    OSError,
)
