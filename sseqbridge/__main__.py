"""`python -m sseqbridge`, and the script `sseqbridge`: see _cli/main.py.

Rule: what takes time to import is imported where Ctrl-C is waited for.
"""

from __future__ import annotations

import sys

__all__ = ["run"]


def run() -> int:
    """Run the command line, and return its exit status."""
    try:
        from sseqbridge._cli.main import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
