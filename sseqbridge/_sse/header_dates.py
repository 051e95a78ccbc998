"""Dates and delays in response headers. Pure: nothing here reads a clock."""

from __future__ import annotations

import email.utils
from datetime import datetime, timezone

__all__ = ["http_date", "retry_after"]

# About 30 years; every clock can add it.
_MAX_SECONDS = 1e9


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the delay of a Retry-After header, a number of seconds or a date, in seconds. None if it is neither.

    Source: RFC 9110, section 10.2.3
    """
    if value is not None and value.isascii() and value.isdigit():
        return min(float(value), _MAX_SECONDS)
    date = http_date(value)
    return None if date is None else min(max(0.0, (date - now).total_seconds()), _MAX_SECONDS)


def http_date(value: str | None) -> datetime | None:
    """Return the date in a header's value, None if it is not a date."""
    try:
        date = email.utils.parsedate_to_datetime(value or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=timezone.utc)
