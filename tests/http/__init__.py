"""Tests of the HTTP/1.1 transport that need no socket: corpora of responses, over a fake connection."""
