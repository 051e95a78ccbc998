"""Selects tests by the programs that they need, by their cost, and by configuration.

setup.cfg describes the markers of needs and cost. Its addopts deselect all tests that have one, unless the command line
has an option -m. A test without the marker `configurations` runs in each configuration, unless the conftest.py of its
folder names other defaults. A test that needs a program or is heavy runs in the default configuration only.

A check of subprocess.Popen keeps the markers complete: a test that starts a program without the program's marker fails.
All functions run in the main thread; the check runs in every thread, and reads one attribute.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sseqbridge import _accelerators
from tests.support import HAS_OWN_TRANSPORT

__all__ = [
    "CONFIGURATION",
    "DEFAULT_ONLY",
    "needs_of_command",
    "running",
    "runs_here",
    "set_defaults",
    "skip_without_program",
    "watch",
]

CONFIGURATIONS = ("default", "plain", "httpx_transport")
CONFIGURATION = (
    "httpx_transport" if not HAS_OWN_TRANSPORT else "default" if _accelerators.is_wanted("uvloop") else "plain"
)

# Tests with these markers run in the default configuration, unless their own `configurations` name others.
DEFAULT_ONLY = {"redis", "browser", "nginx", "server", "gevent", "sdk", "cluster", "heavy"}

# The last part of a program's path, or a module after -m, and the marker of tests that start the program.
_MARKERS = {
    "redis-server": "redis",
    "valkey-server": "redis",
    "chromedriver": "browser",
    "apache2": "nginx",
    "caddy": "nginx",
    "haproxy": "nginx",
    "nginx": "nginx",
    "celery": "server",
    "examples.django_chat": "server",
    "examples.flask_chat": "server",
    "examples.small_chat": "server",
    "tests.apps.django_app": "server",
    "daphne": "server",
    "flask": "server",
    "gunicorn": "server",
    "hypercorn": "server",
    "runserver": "server",
    "uvicorn": "server",
    "uwsgi": "server",
    "uwsgi-core": "server",
    "langgraph": "sdk",
    "llmock": "sdk",
    "monkey.patch_all": "gevent",
}


def set_defaults(item: pytest.Item, *configurations: str) -> None:
    """Let a test run in these configurations, unless its file names others. For a folder's `pytest_itemcollected`."""
    if not any(marker.name == "configurations" or marker.name in DEFAULT_ONLY for marker in item.iter_markers()):
        item.add_marker(pytest.mark.configurations(*configurations))


def runs_here(item: pytest.Item) -> bool:
    """Return whether a test runs in the current configuration."""
    # In one pass, since there are thousands of tests. The closest marker of a name comes first.
    markers: dict[str, pytest.Mark] = {}
    for marker in item.iter_markers():
        markers.setdefault(marker.name, marker)
    if "own_transport" in markers and not HAS_OWN_TRANSPORT:
        return False
    if "configurations" not in markers:
        return CONFIGURATION == "default" or not markers.keys() & DEFAULT_ONLY
    names = markers["configurations"].args
    if unknown := sorted(set(names) - set(CONFIGURATIONS)):
        known = ", ".join(CONFIGURATIONS)
        raise pytest.UsageError(f"{item.nodeid}: `configurations` must be among {known}, got {', '.join(unknown)}")
    return CONFIGURATION in names


def skip_without_program(item: pytest.Item) -> None:
    """Skip a test that needs Redis if it is not installed. Fixtures that start other programs check for these."""
    if item.get_closest_marker("redis") and shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")


# --- Programs without markers ---

_running: pytest.Item | None = None


@contextmanager
def running(item: pytest.Item) -> Iterator[None]:
    """Attribute the programs that are started in the block to `item`."""
    global _running
    _running = item
    try:
        yield
    finally:
        _running = None


def watch() -> None:
    """From now on, fail tests that start a program without its marker."""
    # Not an audit hook: while it runs in sys.settrace(), which coverage calls in each new thread, no other thread may
    # call that.
    start = subprocess.Popen.__init__

    @functools.wraps(start)
    def checked(self: Any, args: Any, *others: Any, **options: Any) -> None:
        _check_command(args)
        start(self, args, *others, **options)

    subprocess.Popen.__init__ = checked  # type: ignore[method-assign]


def _check_command(command: Any) -> None:
    item = _running
    if item is None:
        return
    words = [command] if isinstance(command, (str, bytes, os.PathLike)) else command
    for name in needs_of_command(words):
        if item.get_closest_marker(name) is None:
            raise RuntimeError(f"{item.nodeid} must have the marker {name}, since it starts {command!r}. Mark it.")


def needs_of_command(command: Iterable[str | bytes | os.PathLike[str]]) -> set[str]:
    """Return the markers that a test needs to run this command."""
    words = [os.fsdecode(word) for word in command]
    names = {os.path.basename(word) for word in words}
    return {marker for word, marker in _MARKERS.items() if word in names or _patches(word, words)}


def _patches(word: str, words: Iterable[str]) -> bool:
    return "." in word and any(word in argument for argument in words)
