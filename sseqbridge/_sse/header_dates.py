"""Dates and delays in response headers. Pure: nothing here reads a clock."""

from __future__ import annotations

import email.utils
import re
from datetime import datetime, timezone

__all__ = ["http_date", "retry_after"]

# About 30 years; every clock can add it.
_MAX_SECONDS = 1e9

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")


def retry_after(value: str | None, now: datetime, milliseconds: str | None = None) -> float | None:
    """Return the delay of a Retry-After header, a number of seconds or a date, in seconds. None if it is neither.

    `milliseconds` is a header Retry-After-Ms, which has priority: OpenAI's, which SDKs of providers read. As they do,
    a number may have decimals.

    Source: RFC 9110, section 10.2.3
    """
    for number, unit in ((milliseconds, 1000.0), (value, 1.0)):
        if number is not None and _NUMBER.fullmatch(number):
            return min(float(number) / unit, _MAX_SECONDS)
    date = http_date(value)
    return None if date is None else min(max(0.0, (date - now).total_seconds()), _MAX_SECONDS)


def http_date(value: str | None) -> datetime | None:
    """Return the date in a header's value, None if it is not a date."""
    try:
        date = email.utils.parsedate_to_datetime(value or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=timezone.utc)
