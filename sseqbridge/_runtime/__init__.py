"""The process: threads, locks, waiting, fork, gevent, event loops, sockets.

The only package that starts threads, makes locks or waits.
"""
