"""Coverage-guided fuzzing of the parsers of a peer's bytes against references: `python -m tests.fuzz INPUTS`."""
