"""The chat example with leases that outlast any test; a test ends a lease itself.

An answer is abandoned after ABANDON_AFTER seconds. Each worker sends its process id to the upstream as its API key, so
that a test knows which process to kill.
"""

from __future__ import annotations

import os

import flask

from examples.flask_chat import app as chat
from examples.flask_chat.upstream import Upstream
from sseqbridge.resume import RedisLog
from tests.resume.support import LEASE, check_often

__all__ = ["create_app"]


def create_app() -> flask.Flask:
    """Return the application, for one worker."""
    abandon_after = float(os.environ["ABANDON_AFTER"])
    log = check_often(RedisLog.from_url(os.environ["REDIS_URL"], lease=LEASE, abandon_after=abandon_after))
    return chat.create_app(Upstream(os.environ["OPENAI_BASE_URL"], "puppet", key=str(os.getpid())), log)
