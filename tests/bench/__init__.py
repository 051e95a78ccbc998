"""Benchmarks: `python -m tests.bench` runs them all, `python -m tests.bench abort` one of them.

They print figures and never fail on one: what is shared with others is noisy. Ratios are between
runs of the same round. They want Linux, and `pip install 'sseqbridge[bench]'` for the peers.
"""
