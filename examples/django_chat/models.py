"""The model of a saved answer."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class Answer(models.Model):  # type: ignore[misc]
    """A question of a user, and the answer as far as it came."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="answers")
    question = models.TextField()
    text = models.TextField(blank=True)
    # "running", then the outcome of the relay: "done", "disconnected" (stopped), "error" ...
    outcome = models.CharField(max_length=12, default="running")
