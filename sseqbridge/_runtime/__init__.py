"""The process: threads, locks, waiting, fork, gevent, event loops, sockets, the clock.

Only this package starts threads, makes locks or waits.
"""
