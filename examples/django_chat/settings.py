"""The settings. SECRET_KEY keeps logins valid over restarts, and must be set where there is more than one process."""

from __future__ import annotations

import os
import secrets
from importlib.resources import files
from pathlib import Path

SECRET_KEY = os.environ.get("SECRET_KEY") or secrets.token_urlsafe()
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
ROOT_URLCONF = "examples.django_chat.urls"
LOGIN_REDIRECT_URL = "/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "examples.django_chat",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    # Answers an upstream that cannot be reached with 502 or 504.
    "sseqbridge.relay.django.ErrorMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.contrib.auth.context_processors.auth"]},
    }
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE", "django_chat.sqlite3"),
    }
}

STATIC_URL = "static/"
STATICFILES_DIRS = [
    ("chat", files("sseqbridge.relay") / "browser"),  # relay.js
    ("chat", Path(__file__).parent.parent / "small_chat/static"),  # page.css; in a project: static/chat/ of an app
]
# The directory that `collectstatic` fills.
STATIC_ROOT = os.environ.get("STATIC_ROOT")
