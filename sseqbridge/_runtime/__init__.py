"""The process: threads, locks, waiting, fork, gevent, event loops, sockets, the clock.

Only this package starts threads, makes locks or waits.

`threads.py` has threads, locks and waits, `loops.py` event loops, `sockets.py` descriptors, `lookups.py` DNS,
`gevent.py` the waits of greenlets, `patching.py` detects monkey patches, `fork.py` handles forks. `clock.py` is the
clock of all deadlines, `callbacks.py` guards the loop against exceptions of callers' code, `loop_watch.py` notices a
blocked loop.
"""
