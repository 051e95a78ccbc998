"""Relays in Django that end at SIGTERM, under uvicorn: the asgi.py of a project."""

from __future__ import annotations

from examples.shutdown import with_shutdown
from tests.apps.django_app import asgi

__all__ = ["application"]

application = with_shutdown(asgi)
