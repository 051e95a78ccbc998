"""The settings of examples/django_chat, with passwords that take no time to check."""

from __future__ import annotations

from examples.django_chat.settings import *  # noqa: F403

# The default takes half a second of CPU time for each password.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
