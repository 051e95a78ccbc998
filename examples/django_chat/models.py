"""The model of a saved answer."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.conf import settings
from django.db import models


class Answer(models.Model):  # type: ignore[misc]
    """A question of a user, and the answer as far as it came."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="answers")
    question = models.TextField()
    text = models.TextField(blank=True)
    # "running", then "done", "eof", "error", "disconnected" (the client left) or "cancelled" (log.cancel, a shutdown).
    outcome = models.CharField(max_length=12, default="running")
    # Names the answer in URLs. A page may choose it, so that it knows the address before the response begins.
    key = models.UUIDField(default=uuid.uuid4, editable=False)

    class Meta:
        constraints: ClassVar[list[Any]] = [models.UniqueConstraint(fields=["user", "key"], name="key_of_user")]
