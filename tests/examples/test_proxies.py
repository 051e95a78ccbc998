"""The configurations of proxies in examples/: events pass at once, a disconnect aborts, a cut answer is noticed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from sseqbridge import EventStream, TruncatedStreamError, request_sse
from tests.browser_support import ControlledUpstream, Program, running
from tests.support import ROOT, reserved_port, until

pytestmark = [pytest.mark.nginx, pytest.mark.server]

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
PROXIES = {
    "haproxy": ("haproxy.cfg", ["haproxy", "-f", "{file}"]),
    "caddy": ("Caddyfile", ["caddy", "run", "--config", "{file}", "--adapter", "caddyfile"]),
    "apache2": ("apache.conf", ["apache2", "-f", "{file}", "-D", "FOREGROUND"]),
}
APPLICATION = ["-m", "gunicorn", "--worker-class", "gthread", "--threads", "8", "--bind", "127.0.0.1:{port}"]


class Site(NamedTuple):
    url: str
    application: Program


@pytest.fixture(scope="module")
def upstream() -> Iterator[ControlledUpstream]:
    with ControlledUpstream() as upstream:
        yield upstream


@pytest.fixture(params=PROXIES)
def site(request: pytest.FixtureRequest, upstream: ControlledUpstream, tmp_path: Path) -> Iterator[Site]:
    """The chat page behind a proxy with its configuration, on free ports."""
    name, command = PROXIES[request.param]
    program = shutil.which(command[0], path=_PATH)
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    upstream.reset()
    with reserved_port() as port, reserved_port() as behind:
        text = (ROOT / "examples" / name).read_text("utf-8").replace("/tmp/apache", str(tmp_path))
        assert "127.0.0.1:8080" in text
        file = tmp_path / name
        for configured, actual in {"127.0.0.1:8080": port, "127.0.0.1:8000": behind}.items():
            text = text.replace(configured, f"127.0.0.1:{actual}")
        file.write_text(text)
        variables = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
        application = [sys.executable, *(part.format(port=behind) for part in APPLICATION)]
        application.append("examples.flask_chat.app:create_app()")
        proxy = [program, *(part.format(file=file) for part in command[1:])]
        with (
            running(application, tmp_path, OPENAI_BASE_URL=upstream.base_url, **variables) as served,
            running(proxy, tmp_path, **variables) as ran,
        ):
            url = f"http://127.0.0.1:{port}"

            def is_serving() -> bool:
                assert ran.process.poll() is None, ran.output
                try:
                    return httpx.get(url).status_code == 200
                except httpx.TransportError:
                    return False

            until(is_serving, 60)
            yield Site(url, served)


def ask(site: Site) -> EventStream[object]:
    events: EventStream[object] = request_sse(f"{site.url}/chat", params={"prompt": "hello"}, require_done=True).events
    return events


def test_events_pass_and_a_disconnect_aborts(site: Site, upstream: ControlledUpstream) -> None:
    events = ask(site)
    response = upstream.response()
    for text in ("one", "two"):
        response.send_text(text)
        assert events.next(60) == {"text": text}
    events.close()

    def is_aborted() -> bool:
        # Some proxies tell the application at the next write alone.
        response.send_text("more")
        return response.request.aborted.is_set()

    until(is_aborted, 60)


def test_answer_of_a_killed_application_is_truncated(site: Site, upstream: ControlledUpstream) -> None:
    events = ask(site)
    upstream.response().send_text("one")
    assert events.next(60) == {"text": "one"}
    site.application.kill()
    # Caddy ends the response cleanly: `require_done` notices it.
    with pytest.raises(TruncatedStreamError):
        events.next(60)
