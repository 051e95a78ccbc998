"""Finalizers of objects whose __init__ was ended by an interrupt, before its first line: they raise nothing."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import sseqbridge


def classes() -> Iterator[Any]:
    """Yield every class of the package with a finalizer of the package."""
    for module in pkgutil.walk_packages(sseqbridge.__path__, "sseqbridge."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and value.__module__ == module.name:
                    finalizer = getattr(value, "__del__", None)
                    if getattr(finalizer, "__module__", "").startswith("sseqbridge."):
                        yield value


def test_finalizers_of_objects_without_attributes_raise_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[BaseException] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: errors.append(unraisable.exc_value))
    finalized = []
    for finalizable in classes():
        instance = finalizable.__new__(finalizable)
        del instance
        finalized.append(finalizable.__name__)
    assert errors == []
    assert {"ItemReader", "Frames", "AsyncFrames", "IterableWorker", "Entered"} <= set(finalized)
