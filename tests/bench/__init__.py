"""Benchmarks: `python -m tests.bench` runs them all, `python -m tests.bench abort` one of them.

They print figures, and no figure fails a run, since shared machines are noisy. Ratios compare clients within a round.
They need Linux, and `pip install 'sseqbridge[bench]'` for the other clients.
"""
