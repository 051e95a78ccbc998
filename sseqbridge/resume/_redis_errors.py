"""Maps the errors of redis-py to the errors of the log, by the code of Redis's error reply.

Plain functions of their arguments. Redis begins an error reply with a code, such as READONLY. redis-py has a
class for some codes, and then leaves the code out of the message; Redis 6.2 puts the place in a script
before the code, and has no code for a permission that a script lacks. Only `code_of` reads error texts.
"""

from __future__ import annotations

import re

from redis import exceptions

from sseqbridge._exceptions import LogAccessError, LogError, LogFullError

from ._store import OutageError

__all__ = ["DemotedError", "UnknownScriptError", "code_of", "error_of"]

# The codes that redis-py has a class for. Subclasses come before their base classes.
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
# The place in a script before the code: READONLY ..., user_script:3: READONLY ...,
# ERR Error running script (call to f_<sha>): @user_script:3: -READONLY ...
_PLACE = r"(?:ERR )?(?:Error running script \(call to \w+\): ?)?(?:@?\w+: ?[0-9]+: ?)*-?"
_CODE = re.compile(_PLACE + r"([A-Z][A-Z0-9]+)(?: |$)")
# A command or key in a script that the user has no permission for: Redis up to 7.0, and later versions and Valkey.
_NOPERM = re.compile(_PLACE + "(?:ERR )?(?:The user executing the script can't |ACL failure in script)")

# The server has become a replica.
_DEMOTED = frozenset({"READONLY", "UNBLOCKED", "MASTERDOWN"})
# The server starts, has no disk or no replica, runs a script, fails over, or moves slots.
_TEMPORARY = frozenset({"LOADING", "MISCONF", "NOREPLICAS", "BUSY", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK"})
_REFUSED = frozenset({"WRONGPASS", "NOAUTH", "NOPERM"})


class DemotedError(OutageError):
    """The master has become a replica: new connections are needed to find the new master."""


class UnknownScriptError(Exception):
    """Redis does not know a script by its hash."""


def code_of(exc: BaseException | None) -> str:
    """Return the code of a Redis error reply, such as "READONLY"; "" without a code, and for other errors."""
    for kind, code in _CODES.items():
        if isinstance(exc, kind):
            return code
    if not isinstance(exc, exceptions.ResponseError):
        return ""
    if _NOPERM.match(str(exc)):
        return "NOPERM"
    match = _CODE.match(str(exc))
    return "" if match is None else match[1]


def error_of(exc: Exception) -> Exception:
    """Return the log's error for an error of redis-py or of the network."""
    code = code_of(exc)
    text = f"{type(exc).__name__}: {exc}"
    if code in _DEMOTED:
        return DemotedError(text)
    if code in _TEMPORARY:
        return OutageError(text)
    if code in _REFUSED:
        return LogAccessError(f"Redis refuses the credentials, or lacks permissions for them ({text})")
    if code == "OOM":
        return LogFullError(f"Redis has no memory left. Raise maxmemory, or lower ttl or max_events. ({text})")
    if code == "NOSCRIPT":
        return UnknownScriptError()
    if isinstance(exc, _NETWORK):
        return OutageError(text)
    return LogError(f"Redis failed a command of the log ({text})")


# No reply, or no node of a Cluster has the slot.
_NETWORK = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterError,
    exceptions.RedisClusterException,
    OSError,
)
