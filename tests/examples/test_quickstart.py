"""examples/quickstart.py, run as in the README."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from sseqbridge.testing import SSEServer, chat_completions
from tests.examples.commands import documented
from tests.support import ROOT

pytestmark = pytest.mark.slow

_VARIABLES = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL")


def quickstart(**variables: str) -> str:
    """Run the quickstart with environment variables. Returns its output."""
    environment = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8", **variables}
    ran = subprocess.run(
        documented("python examples/quickstart.py").words,
        cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=250, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_quickstart_runs_against_its_own_upstream() -> None:
    out = quickstart()
    first, second = out.split("> ")[1:]
    assert first.startswith("What are Server-Sent Events?\n")
    assert "each token of this answer came as one of them" in first
    assert second.startswith("Again, but we leave after ten tokens.\n")
    left = re.search(r"aborted (-?\d+\.\d) ms after the break", second)
    assert left
    assert -100 < float(left[1]) < 2000


def test_quickstart_with_a_key_uses_the_configured_endpoint() -> None:
    words = [f"word{n} " for n in range(400)]
    with SSEServer(chat_completions(words, delay=0.001)) as server:
        out = quickstart(OPENAI_API_KEY="a-key", OPENAI_BASE_URL=f"{server.url}/v1", OPENAI_MODEL="a-model")
        first, second = out.split("> ")[1:]
        assert "".join(words) in first
        assert "word3 " in second
        assert "word399" not in second
        assert "aborted" not in out, "that cannot be seen from here"
        for request in server.requests:
            assert (request.method, request.path) == ("POST", "/v1/chat/completions")
            assert request.headers["authorization"] == "Bearer a-key"
            assert (request.json()["model"], request.json()["stream"]) == ("a-model", True)
        assert len(server.requests) == 2
        assert server.requests[1].wait_aborted()
        assert not server.requests[0].aborted.is_set()
