"""examples/celery_worker as real programs: redis-server, a Celery worker and gunicorn, each of which may be killed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sseqbridge import EventStream, ReconnectionPolicy, ServerSentEvent, request_sse
from tests.browser_support import ControlledUpstream, Program, running
from tests.examples.commands import COMMANDS, parts_of_block
from tests.examples.guides import example, shell
from tests.redis_support import RedisServer, redis_server
from tests.support import reserved_port

pytestmark = [pytest.mark.redis, pytest.mark.server]

# The commands of the guide: the worker, the web server, and three requests.
[_BLOCK] = shell("examples/celery.md", "A Celery worker writes, views read")
_WORKER, _WEB, *REQUESTS = parts_of_block(_BLOCK)
WORKER, WEB = (COMMANDS[command].words for command in (_WORKER, _WEB))
# One task at a time. The workers' gossip takes seconds at the start, and there is only one worker.
ALONE = ["--loglevel", "INFO", "--concurrency", "1", "--without-gossip", "--without-mingle", "--without-heartbeat"]


class Site:
    """The two programs, and requests to them."""

    def __init__(self, url: str, worker: Program, web: Program) -> None:
        self.url = url
        self.worker = worker
        self.web = web

    def ask(self, prompt: str) -> str:
        """Start an answer, and return its URL."""
        response = httpx.post(f"{self.url}/ask", json={"prompt": prompt}, timeout=60)
        assert response.status_code == 202
        return f"{self.url}/answers/{response.json()['key']}"


@contextmanager
def serving(redis_url: str, base_url: str, cwd: Path, pool: str = "prefork") -> Iterator[Site]:
    variables = {"REDIS_URL": redis_url, "OPENAI_BASE_URL": base_url, "HOME": str(cwd)}
    with (
        reserved_port() as port,
        running([*WORKER, *ALONE, "--pool", pool], cwd, **variables) as worker,
        running([*WEB, "--bind", f"127.0.0.1:{port}"], cwd, **variables) as web,
    ):
        web.wait_for_output("Booting worker")
        worker.wait_for_output(r"celery@\S+ ready")
        yield Site(f"http://127.0.0.1:{port}", worker, web)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def started(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, ControlledUpstream]]:
    cwd = tmp_path_factory.mktemp("cwd")
    with ControlledUpstream() as upstream, serving(redis.url, upstream.base_url, cwd) as site:
        yield site, upstream


@pytest.fixture
def upstream(started: tuple[Site, ControlledUpstream]) -> ControlledUpstream:
    """The upstream of the worker."""
    _, upstream = started
    upstream.reset()
    return upstream


@pytest.fixture
def site(started: tuple[Site, ControlledUpstream], upstream: ControlledUpstream) -> Site:
    return started[0]


def events_at(url: str, last_event_id: str = "", **options: Any) -> EventStream[ServerSentEvent]:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    events: EventStream[ServerSentEvent] = request_sse(
        url, headers, decode="event", timeout={"read": 60}, **options
    ).events
    return events


def text_of(event: ServerSentEvent) -> str:
    text: str = event.json()["choices"][0]["delta"]["content"]
    return text


def test_answer_is_streamed_to_every_reader(site: Site, upstream: ControlledUpstream) -> None:
    url = site.ask("Count")
    events = events_at(url)
    response = upstream.response()
    assert response.request.json()["messages"] == [{"role": "user", "content": "Count"}]
    for text in ("one", "two", "three"):
        response.send_text(text)
        event = events.next(60)
        assert text_of(event) == text
        if text == "two":
            seen = event.id
    other = events_at(url, seen)
    assert text_of(other.next(60)) == "three"
    response.send_text("four")
    response.end()
    assert [[text_of(event) for event in reader] for reader in (events, other)] == [["four"], ["four"]]
    assert (events.outcome, other.outcome) == ("done", "done")
    # The complete answer can be read again.
    assert [text_of(event) for event in events_at(url)] == ["one", "two", "three", "four"]
    assert upstream.request_count == 1


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@example("examples/celery.md", "A Celery worker writes, views read")
def test_requests_of_the_guide(site: Site, upstream: ControlledUpstream) -> None:
    key = ""

    def curl(command: str) -> subprocess.Popen[str]:
        words = shlex.split(command.replace("http://127.0.0.1:8000", site.url).replace("KEY", key))
        return subprocess.Popen([*words, "--silent", "--show-error"], stdout=subprocess.PIPE, text=True)

    ask, read, stop = REQUESTS
    with curl(ask) as asking:
        key = json.loads(asking.communicate(timeout=60)[0])["key"]
    response = upstream.response()
    assert response.request.json()["messages"] == [{"role": "user", "content": "Hello"}]
    response.send_text("Hello yourself!")
    with curl(read) as reading:
        assert reading.stdout is not None
        assert any("Hello yourself!" in line for line in reading.stdout)
        with curl(stop) as stopping:
            assert stopping.wait(60) == 0
        assert "event: cancelled" in reading.communicate(timeout=60)[0]
    response.request.wait_aborted(60)


def test_answer_is_produced_without_a_reader(site: Site, upstream: ControlledUpstream) -> None:
    url = site.ask("Count")
    response = upstream.response()
    response.send_text("one", "two")
    response.end()
    assert response.request.finished.wait(60)
    assert [text_of(event) for event in events_at(url)] == ["one", "two"]


def test_a_cancel_aborts_the_upstream_and_ends_the_readers(site: Site, upstream: ControlledUpstream) -> None:
    url = site.ask("Think")
    events = events_at(url)
    response = upstream.response()
    response.send_text("Hm")
    assert text_of(events.next(60)) == "Hm"
    assert httpx.delete(url, timeout=60).status_code == 204
    response.request.wait_aborted(60)
    # After the answer's event that it was cancelled the connection ends.
    assert ([event.event for event in events], events.outcome) == (["cancelled"], "eof")
    assert httpx.delete(url, timeout=60).status_code == 404


def test_the_upstreams_error_reaches_the_reader(site: Site, upstream: ControlledUpstream) -> None:
    events = events_at(site.ask("Fail"))
    response = upstream.response()
    response.send_text("So far")
    response.cut()
    assert text_of(events.next(60)) == "So far"
    (event,) = events
    assert (event.event, event.json()["error"]["type"]) == ("error", "TruncatedStreamError")


def test_killed_web_worker_loses_no_event(site: Site, upstream: ControlledUpstream) -> None:
    url = site.ask("Count")
    events = events_at(url, reconnect=ReconnectionPolicy(delay=0.05))
    response = upstream.response()
    texts = [str(number) for number in range(300)]
    response.send_text(*texts[:100])
    read = [text_of(events.next(60)) for _ in range(50)]
    master = site.web.process.pid
    (killed,) = map(int, Path(f"/proc/{master}/task/{master}/children").read_text().split())
    os.kill(killed, signal.SIGKILL)
    response.send_text(*texts[100:])
    response.end()
    read += [text_of(event) for event in events]
    assert (read, events.outcome) == (texts, "done")
    assert events.stats.reconnections == 1
    assert (upstream.request_count, response.request.aborted.is_set()) == (1, False)


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_killed_celery_worker_ends_its_readers(
    pool: str, redis: RedisServer, upstream: ControlledUpstream, tmp_path: Path
) -> None:
    # Each site has its own database, so that no other worker takes its tasks.
    number = ["prefork", "solo"].index(pool) + 1
    with serving(f"{redis.url}/{number}", upstream.base_url, tmp_path, pool) as site:
        events = events_at(site.ask("Live long"))
        response = upstream.response()
        response.send_text("I will")
        assert text_of(events.next(60)) == "I will"
        site.worker.kill()
        event = events.next(60)
        assert (event.event, event.json()["error"]["type"]) == ("error", "ProducerLostError")
        assert (list(events), upstream.request_count) == ([], 1)


def test_example_runs_without_an_account(redis: RedisServer, tmp_path: Path) -> None:
    with serving(f"{redis.url}/3", "", tmp_path) as site:
        events = events_at(site.ask("Hello, you"))
        assert "".join(map(text_of, events)).startswith("You said: \N{LEFT DOUBLE QUOTATION MARK}Hello, you")
        assert events.outcome == "done"


def test_unreadable_stream_has_a_fitting_status(site: Site, upstream: ControlledUpstream) -> None:
    answers = f"{site.url}/answers"
    assert httpx.get(f"{answers}/%7B", timeout=60).status_code == 400
    assert httpx.delete(f"{answers}/%7B", timeout=60).status_code == 400
    assert httpx.delete(f"{answers}/nothing", timeout=60).status_code == 404
    assert httpx.get(f"{answers}/nothing", timeout=60).status_code == 404
    assert httpx.get(f"{answers}/nothing", headers={"Last-Event-ID": "1-1"}, timeout=60).status_code == 410
    bodies: list[object] = [[], {}, {"prompt": 1}]
    for body in bodies:
        assert httpx.post(f"{site.url}/ask", json=body, timeout=60).status_code == 400
    assert upstream.request_count == 0
