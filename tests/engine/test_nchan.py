"""Streams of a server that stores its messages and resumes: nginx's nchan, with random cuts.

`python -m tests.engine.test_nchan CUTS SEED` makes more cuts.
"""

from __future__ import annotations

import argparse
import itertools
import os
import uuid
from collections.abc import Iterator

import httpx
import pytest

from sseqbridge import ReconnectionPolicy
from tests.proxy import CuttingProxy
from tests.requesters import Requester
from tests.servers import NCHAN, NGINX, Server, Servers
from tests.support import in_thread

pytestmark = pytest.mark.nginx

POLICY = ReconnectionPolicy(delay=0.001, jitter=0)


@pytest.fixture(scope="module")
def nchan() -> Iterator[Server]:
    if NGINX is None or not NCHAN.exists():
        pytest.skip("there is no nginx with nchan: install Debian's libnginx-mod-nchan")
    with Servers() as servers:
        yield servers["nchan"]


def publish_until_cut(server: Server, channel: str, proxy: CuttingProxy, cuts: int) -> int:
    """Publish numbers until the proxy has made `cuts` cuts, then `end`; return how many numbers."""
    with httpx.Client(timeout=30) as client:
        for number in itertools.count():
            is_last = proxy.cuts >= cuts
            client.post(
                f"{server.url}/publish?id={channel}", content="end" if is_last else str(number)
            ).raise_for_status()
            if is_last:
                proxy.most = None
                return number
    raise AssertionError


def survive(server: Server, ask: Requester, *, cuts: int, seed: int) -> tuple[int, int]:
    """Read a channel while its connection is cut, and check that every message came once, in order."""
    channel = uuid.uuid4().hex
    # A head has about 300 bytes, a message 40: cuts hit both.
    with CuttingProxy(server.port, most=700, seed=seed) as proxy:
        published = in_thread(lambda: publish_until_cut(server, channel, proxy, cuts))
        url = f"http://127.0.0.1:{proxy.port}/subscribe?id={channel}"
        response = ask(url, decode="text", done="end", reconnect=POLICY)
        items = response.items()
        assert items == [str(number) for number in range(published.result(30))]
        assert response.events.outcome == "done"
        assert proxy.cuts >= cuts
        return len(items), response.events.stats.reconnections


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_repeated_cuts_lose_and_repeat_no_message(nchan: Server, ask: Requester) -> None:
    is_once_more = ask.is_async or "SSEQBRIDGE_WITHOUT" in os.environ
    survive(nchan, ask, cuts=100 if is_once_more else 300, seed=1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.test_nchan", description=__doc__)
    parser.add_argument("cuts", type=int, nargs="?", default=1000)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    options = parser.parse_args()
    with Servers() as servers:
        ask = Requester(is_async=False)
        messages, reconnections = survive(servers["nchan"], ask, cuts=options.cuts, seed=options.seed)
    print(f"{messages} messages, each once and in order; {reconnections} reconnections")


if __name__ == "__main__":
    main()
