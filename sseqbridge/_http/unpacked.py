"""The type of the headers in a response tuple. Imported by type checkers and pdoc alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

__all__ = ["UnpackedHeaders"]

if TYPE_CHECKING:

    class UnpackedHeaders(httpx.Headers, Any):  # type: ignore[misc]
        """The headers in a response tuple, for type checkers.

        They are also Any: in a module, `_, _, events = request_sse(...)` gives `_` the type of the status, and assigns
        the headers to it.
        """

else:
    UnpackedHeaders = httpx.Headers
