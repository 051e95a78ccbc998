"""The chat example, where an answer is missed, and taken over, in a time that a test can wait for.

Each worker tells the upstream its process id as its key, so that a test knows whom to kill.
"""

from __future__ import annotations

import os

import flask

from examples.flask_chat import app as chat
from examples.flask_chat.upstream import Upstream
from sseqbridge.resume import RedisLog

__all__ = ["create_app"]


def create_app() -> flask.Flask:
    """Return the application, for one worker."""
    log = RedisLog.from_url(os.environ["REDIS_URL"], lease=3.0, abandon_after=1.0)
    return chat.create_app(Upstream(os.environ["OPENAI_BASE_URL"], "puppet", key=str(os.getpid())), log)
