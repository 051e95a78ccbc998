"""Django's settings, for the servers of tests/local_servers.py."""

from __future__ import annotations

import tempfile

import django
from django.conf import settings

from tests.local_servers import sending, under_uvicorn, under_werkzeug, under_wsgiref

__all__ = ["sending", "under_uvicorn", "under_werkzeug", "under_wsgiref"]

_FOLDER = tempfile.TemporaryDirectory()

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        # A file: Django does not close an in-memory database.
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": _FOLDER.name + "/database"}},
        # A test of other views overrides it.
        ROOT_URLCONF="tests.relay.test_frameworks",
        SECRET_KEY="tests",
    )
    django.setup()
