"""Optional parts that make the library faster: uvloop, msgspec, the library's own HTTP transport.

The environment variable SSEQBRIDGE_WITHOUT names parts to leave out although they are installed,
separated by commas. It is read when a part is first requested, and holds for the process.

Invariant: a part changes speed, never results. The cached functions return the same value in every
thread, so concurrent first calls need no lock.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["PARTS", "imported", "in_use", "is_wanted", "json_decode", "log_in_use"]

logger = logging.getLogger("sseqbridge")

PARTS = ("uvloop", "msgspec", "transport")

_VARIABLE = "SSEQBRIDGE_WITHOUT"

# Parts whose import failed.
_failed: set[str] = set()


def is_wanted(part: str) -> bool:
    """Return whether `part`, one of PARTS, is used if it is installed."""
    return part not in _left_out()


@functools.cache
def _left_out() -> frozenset[str]:
    named = {name.strip().lower() for name in os.environ.get(_VARIABLE, "").split(",")} - {""}
    unknown = named.difference(PARTS)
    if unknown:
        logger.warning("%s must name %s, got %s", _VARIABLE, ", ".join(PARTS), ", ".join(sorted(unknown)))
    return frozenset(named)


@functools.cache
def imported(part: str) -> ModuleType | None:
    """Return the package `part`, None if it is left out or cannot be imported."""
    if not is_wanted(part):
        return None
    try:
        return import_module(part)
    except Exception:
        # Not installed, or built for another interpreter. The library works without it.
        _failed.add(part)
        return None


@functools.cache
def json_decode() -> Callable[[str], Any]:
    """Return a decoder: msgspec's, or json's own. If it raises, the caller must try json.loads.

    Both return equal values for text that both accept. json.loads accepts some text that they
    refuse (msgspec: NaN, lone surrogates, floats beyond the largest one; both differ about blanks around the
    value), and defines the error for the rest.
    Both limit nesting to the interpreter's recursion limit, msgspec up to three levels later.
    """
    msgspec = imported("msgspec")
    return _loads if msgspec is None else msgspec.json.Decoder().decode


_raw_decode = json.JSONDecoder().raw_decode


def _loads(text: str) -> Any:
    """Do the same as json.loads, with fewer calls, for text without blanks around the value."""
    value, end = _raw_decode(text)
    if end != len(text):
        raise ValueError("not one value")
    return value


def in_use() -> str:
    """Return one line that names the parts in use, and the others with the reason. Imports no part."""
    states = [(part, _reason_unused(part)) for part in PARTS]
    used = ", ".join(_with_version(part) for part, why_not in states if not why_not)
    unused = ", ".join(f"{part} ({why_not})" for part, why_not in states if why_not)
    return f"in use: {used or 'no fast part'}" + (f"; not in use: {unused}" if unused else "")


@functools.cache
def log_in_use() -> None:
    """Log `in_use()` once per process: the first fact that a report of slowness needs."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", in_use())


def _reason_unused(part: str) -> str:
    if not is_wanted(part):
        return _VARIABLE
    if part == "transport":
        return ""
    try:
        installed = find_spec(part) is not None
    except ValueError:
        installed = True  # A module without a spec, such as a test double in sys.modules.
    if not installed:
        return "not installed"
    return "cannot be imported" if part in _failed else ""


def _with_version(part: str) -> str:
    if part == "transport":
        return "the library's own transport"
    # Imported late: importing it takes as long as importing the parts.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{part} {version(part)}"
    except PackageNotFoundError:
        return part  # Frozen applications contain packages without their metadata.
