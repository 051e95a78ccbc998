"""The ASGI application."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

from examples.shutdown import with_shutdown

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.django_chat.settings")

application = with_shutdown(get_asgi_application())
