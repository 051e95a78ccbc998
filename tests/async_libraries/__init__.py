"""Asynchronous libraries under iterate, run and enter."""
