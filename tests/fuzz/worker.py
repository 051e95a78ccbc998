"""One process of the fuzzer: `python -m tests.fuzz.worker TARGET`, and then libFuzzer's own arguments.

Exits with status 1, and prints the input, if the library and the reference differ.
"""

from __future__ import annotations

import os
import sys
import traceback

import atheris

# Imported first, since atheris instruments only the modules imported inside this block.
with atheris.instrument_imports(
    include=[
        "sseqbridge._sse.parser",
        "sseqbridge._sse.json_lines",
        "sseqbridge._http.h1_heads",
        "sseqbridge._http.h1_bodies",
    ]
):
    import sseqbridge._http.h1_bodies
    import sseqbridge._http.h1_heads
    import sseqbridge._sse.json_lines
    import sseqbridge._sse.parser

from .targets import SHORT_BYTES, TARGETS, Target

__all__ = ["main"]


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    sseqbridge._sse.parser.SHORT_BYTES = SHORT_BYTES
    target = TARGETS[sys.argv[1]]

    def run(data: bytes) -> None:
        try:
            target.check(data)
        except Exception:
            _report(target, target.shrunk(data))
            # Not by raising, which libFuzzer would report again.
            os._exit(1)

    atheris.Setup([os.environ.get("SSEQBRIDGE_FUZZ_WORKER", sys.argv[0]), *sys.argv[2:]], run)
    atheris.Fuzz()


def _report(target: Target, data: bytes) -> None:
    print(f"a difference: {data!r}, which stands for {target.stream(data)!r}")
    try:
        target.check(data)
    except Exception:
        traceback.print_exc(file=sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
