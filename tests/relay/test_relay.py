"""The package sseqbridge.relay: its names, and frameworks that are not installed."""

from __future__ import annotations

import re
import sys

import pytest

from sseqbridge import relay
from tests.support import python

pytestmark = pytest.mark.configurations("default", "plain", "httpx_transport")


def test_public_names() -> None:
    assert sorted(relay.__all__) == [
        "AsyncFrames",
        "EVENT_STREAM_HEADERS",
        "Frames",
        "RelayEnd",
        "aframes",
        "django",
        "end_all",
        "flask",
        "frames",
        "reader_left",
        "starlette",
    ]
    assert all(hasattr(relay, name) for name in relay.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pyramid'"):
        _ = relay.pyramid


_WITHOUT_DJANGO = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("django", "asgiref"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Finder())
from sseqbridge import relay

try:
    relay.django
except ImportError as error:
    print(error)
"""


@pytest.mark.slow
def test_missing_django_is_named_although_asgiref_is_imported_first() -> None:
    assert python(_WITHOUT_DJANGO) == (0, "relay.django needs Django: pip install 'sseqbridge[django]'\n", "")


@pytest.mark.parametrize(
    ("missing", "message"), [("flask", "pip install 'sseqbridge"), ("werkzeug", "No module named")]
)
def test_missing_framework_is_named_in_the_import_error(
    monkeypatch: pytest.MonkeyPatch, missing: str, message: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("flask", "werkzeug")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "sseqbridge.relay.flask", raising=False)
    # Not delattr(): it reads the attribute first, and so imports the module that must be missing.
    monkeypatch.delitem(vars(relay), "flask", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=re.escape(message)):
        _ = relay.flask
