"""The wire format of Server-Sent Events: events, parser, encoder, as sans-IO code.

`parser.py` and `json_lines.py` parse, `encoder.py` writes, `events.py` has the events, and `recording.py` recorded
streams. `retries.py`, `retry_policy.py` and `resumption.py` are the policies of retries, of reconnections, and of the
requests that these send; `header_dates.py` reads Retry-After. `dialects.py` decides which events are ends, heartbeats
and errors, `provider_errors.py` finds the message of a provider's error.
"""
