"""Tests of the HTTP/1.1 transport that need no socket: corpora of answers, over a fake connection."""
