"""Which of the optional fast parts are in use: uvloop, msgspec, the library's own HTTP transport.

The environment variable SSEQBRIDGE_WITHOUT names parts to leave out although they are there,
separated by commas. It is read when a part is first asked for, and holds for the process.

Rule: a part changes how fast things are, and never what they give. What is cached here comes out
the same whoever works it out, so that threads which come at the same time need no lock.
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

# What was tried and could not be imported.
_failed: set[str] = set()


def is_wanted(part: str) -> bool:
    """Whether one of PARTS is to be used where it is there."""
    return part not in _left_out()


@functools.cache
def _left_out() -> frozenset[str]:
    named = {name.strip().lower() for name in os.environ.get(_VARIABLE, "").split(",")} - {""}
    unknown = named.difference(PARTS)
    if unknown:
        logger.warning("%s names %s; it knows %s", _VARIABLE, ", ".join(sorted(unknown)), ", ".join(PARTS))
    return frozenset(named)


@functools.cache
def imported(part: str) -> ModuleType | None:
    """Return the package of that name, None where it is not wanted or cannot be imported."""
    if not is_wanted(part):
        return None
    try:
        return import_module(part)
    except Exception:
        # Not installed; or not fit for this interpreter, which is no reason to fail.
        _failed.add(part)
        return None


@functools.cache
def json_decode() -> Callable[[str], Any]:
    """Return msgspec's decoder, or json.loads. Whatever it raises, json.loads is to be asked then.

    What both take has the same value in both. What msgspec refuses json.loads may take (NaN, lone
    surrogates, floats past the largest one), or knows the error of. In nesting both stop where
    the interpreter's own limit is, msgspec up to three levels later.
    """
    msgspec = imported("msgspec")
    return json.loads if msgspec is None else msgspec.json.Decoder().decode


def in_use() -> str:
    """Return one line on what is in use, and what is not for what reason. Imports no part."""
    states = [(part, _why_not(part)) for part in PARTS]
    used = ", ".join(_with_version(part) for part, why_not in states if not why_not)
    unused = ", ".join(f"{part} ({why_not})" for part, why_not in states if why_not)
    return f"in use: {used or 'no fast part'}" + (f"; not in use: {unused}" if unused else "")


@functools.cache
def log_in_use() -> None:
    """Log what is in use, once a process: what a report of slowness has to say first."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", in_use())


def _why_not(part: str) -> str:
    if not is_wanted(part):
        return _VARIABLE
    if part == "transport":
        return ""
    try:
        installed = find_spec(part) is not None
    except ValueError:
        installed = True  # Something that was put in its place, which has no spec.
    if not installed:
        return "not installed"
    return "cannot be imported" if part in _failed else ""


def _with_version(part: str) -> str:
    if part == "transport":
        return "the library's own transport"
    # Here, since it takes as long to import as the parts do.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{part} {version(part)}"
    except PackageNotFoundError:
        return part  # In frozen applications packages come without their metadata.
