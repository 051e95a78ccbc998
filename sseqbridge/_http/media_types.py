"""The media type of a Content-Type header, extracted as browsers do. Pure.

Proxies and frameworks send the header twice, or as a list. The last valid media type counts.
Source: https://fetch.spec.whatwg.org/#concept-header-extract-mime-type
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .header_syntax import TOKEN

__all__ = ["media_type"]

_MEDIA_TYPE = re.compile(rf"[ \t\r\n]*({TOKEN.pattern}/{TOKEN.pattern})[ \t\r\n]*(?:;.*)?", re.DOTALL)
# A value of a list: a comma inside a quoted string does not end it. A string may lack its closing quote.
_VALUE = re.compile(r'(?:[^",]+|"(?:[^"\\]|\\.)*(?:"|\\?\Z))*', re.DOTALL)


def media_type(content_type: str) -> str:
    """Return the media type, in lower case and without parameters; "" if there is no valid one.

    `content_type` is the header's value; values of several headers are joined by commas.
    """
    found = ""
    for value in _values(content_type):
        match = _MEDIA_TYPE.fullmatch(value)
        if match is not None and match[1] != "*/*":
            found = match[1].lower()
    return found


def _values(content_type: str) -> Iterator[str]:
    if "," not in content_type:
        yield content_type
        return
    at = 0
    while at <= len(content_type):
        match = _VALUE.match(content_type, at)
        assert match is not None
        yield match[0]
        # After the comma.
        at = match.end() + 1
