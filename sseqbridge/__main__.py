"""Entry point of `python -m sseqbridge` and of the script `sseqbridge`: see _cli/main.py.

The slow imports happen inside `run`, so that Ctrl-C during them ends the program with status 130.
"""

from __future__ import annotations

import signal
import sys

__all__ = ["run"]


def run() -> int:
    """Run the command line and return its exit status."""
    try:
        from sseqbridge._cli.main import main

        return main()
    except KeyboardInterrupt as interrupt:
        # SIGINT, unless it is the command line's own exception for another signal.
        return 128 + getattr(interrupt, "number", signal.SIGINT)


if __name__ == "__main__":
    sys.exit(run())
