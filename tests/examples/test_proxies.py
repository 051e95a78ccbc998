"""The configurations of proxies in examples/: events pass at once, a disconnect aborts, a cut answer is noticed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sseqbridge import EventStream, TruncatedStreamError, request_sse
from tests.browser_support import ControlledUpstream, Program, running
from tests.examples.commands import documented
from tests.support import ROOT, reserved_port, until

pytestmark = [pytest.mark.nginx, pytest.mark.server]

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
PROXIES = {
    "haproxy.cfg": documented("haproxy -f examples/haproxy.cfg"),
    "Caddyfile": documented("caddy run --config examples/Caddyfile"),
    "apache.conf": documented("""apache2 -f "$PWD/examples/apache.conf" -D FOREGROUND"""),
}
# The directory of apache.conf.
MADE = documented("mkdir -p /tmp/apache").words[-1]
APPLICATION = documented("gunicorn -k gthread --threads 100 'examples.flask_chat.app:create_app()'")


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
    name, (command, *options) = request.param, PROXIES[request.param].words
    program = shutil.which(command, path=_PATH)
    if program is None:
        pytest.skip(f"{command} is not installed")
    upstream.reset()
    with reserved_port() as port, reserved_port() as behind:
        text = (ROOT / "examples" / name).read_text("utf-8").replace(MADE, str(tmp_path))
        assert "127.0.0.1:8080" in text
        file = tmp_path / name
        for configured, actual in {"127.0.0.1:8080": port, "127.0.0.1:8000": behind}.items():
            text = text.replace(configured, f"127.0.0.1:{actual}")
        file.write_text(text)
        variables = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
        application = [*APPLICATION.words, "--bind", f"127.0.0.1:{behind}"]
        # The relative path of the Caddyfile, and the absolute ones of the others.
        proxy = [program, *(option.replace("$PWD/", "").replace(f"examples/{name}", str(file)) for option in options)]
        assert str(file) in proxy
        with (
            running(application, tmp_path, OPENAI_BASE_URL=upstream.base_url, **variables) as served,
            running(proxy, tmp_path, **variables) as ran,
        ):
            url = f"http://127.0.0.1:{port}"

            ran.wait_until_serving(url)
            served.wait_until_serving(f"http://127.0.0.1:{behind}")
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
