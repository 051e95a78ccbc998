"""The syntax of HTTP header fields, as regular expressions: the one place where they are defined.

Patterns for whole names and values are used with `fullmatch`, the FORBIDDEN_* patterns with `search`.
Patterns whose names end in _BYTES are for fields as they are on the wire.
"""

from __future__ import annotations

import re

__all__ = [
    "FORBIDDEN_IN_FETCH_VALUE",
    "FORBIDDEN_IN_FETCH_VALUE_BYTES",
    "FORBIDDEN_IN_VALUE",
    "FORBIDDEN_IN_VALUE_BYTES",
    "LENGTH",
    "LENGTH_BYTES",
    "TOKEN",
    "TOKEN_BYTES",
    "VALUE",
]

# A method or a field name (RFC 9110, section 5.6.2).
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
TOKEN_BYTES = re.compile(TOKEN.pattern.encode())

# A Content-Length. More digits overflow a signed 64-bit integer, so that another parser could read a smaller length.
LENGTH = re.compile("[0-9]{1,18}")
LENGTH_BYTES = re.compile(LENGTH.pattern.encode())

# A value in latin-1 without control characters, except tabs.
VALUE = re.compile("[\t\x20-\x7e\x80-\xff]*")

# Control characters except tabs, and a space or tab at either end. (Not \s, to which the byte A0 is a space.)
FORBIDDEN_IN_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|^[ \t]|[ \t]$")
FORBIDDEN_IN_VALUE_BYTES = re.compile(FORBIDDEN_IN_VALUE.pattern.encode())

# The characters that the Fetch standard excludes from a header value: https://fetch.spec.whatwg.org/#header-value
FORBIDDEN_IN_FETCH_VALUE = re.compile(r"[\x00\n\r]")
FORBIDDEN_IN_FETCH_VALUE_BYTES = re.compile(FORBIDDEN_IN_FETCH_VALUE.pattern.encode())
