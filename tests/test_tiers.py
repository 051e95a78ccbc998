"""The selection of tests: by configuration, and by the programs that they start."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import tiers
from tests.support import ROOT

pytestmark = [pytest.mark.configurations("default"), pytest.mark.slow]


@pytest.mark.parametrize(
    ("command", "needs"),
    [
        (["/usr/bin/redis-server", "--port", "1"], {"redis"}),
        ([sys.executable, "-m", "gunicorn", "tests.apps.flask_app:app"], {"server"}),
        (["/usr/sbin/nginx", "-t"], {"nginx"}),
        ([sys.executable, "-c", "from gevent import monkey; monkey.patch_all()"], {"gevent"}),
        ([sys.executable, "-c", "import gunicorn"], set()),
        ([b"redis-server"], {"redis"}),
    ],
)
def test_commands_have_markers(command: list[str | bytes], needs: set[str]) -> None:
    assert tiers.needs_of_command(command) == needs


def test_program_without_its_marker_is_refused() -> None:
    with pytest.raises(RuntimeError, match="must have the marker redis"):
        subprocess.Popen(["redis-server", "--version"])


@pytest.mark.parametrize(("without", "collected"), [("", True), ("uvloop,msgspec", False), ("transport", False)])
def test_folder_decides_configurations(without: str, collected: bool) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/sse/test_events.py"]
    environment = {**os.environ, "SSEQBRIDGE_WITHOUT": without}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert ("tests/sse/test_events.py::" in done.stdout) is collected, done.stdout
