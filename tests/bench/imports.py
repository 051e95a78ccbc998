"""What `import sseqbridge` costs beside `import httpx`, each in fresh processes, in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys

__all__ = ["main"]

ROUNDS = 15
STATEMENTS = ("import httpx", "import sseqbridge", "from sseqbridge import request_sse")


def main() -> None:
    """Print the medians, and the ratios of the same round."""
    rounds = [{statement: import_seconds(statement) for statement in STATEMENTS} for _ in range(ROUNDS)]
    for statement in STATEMENTS:
        median = statistics.median(times[statement] for times in rounds)
        ratio = statistics.median(times[statement] / times["import httpx"] for times in rounds)
        print(f"{statement:<36} {median * 1000:7.1f} ms   {ratio:5.2f} times httpx")


def import_seconds(statement: str) -> float:
    """Return how long a fresh interpreter takes for one import statement."""
    program = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    return float(done.stdout)
