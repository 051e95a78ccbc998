"""Fuzzing of what reads bytes of a peer's, coverage-guided and against references: `python -m tests.fuzz INPUTS`."""
