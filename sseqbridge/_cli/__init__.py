"""The command line: one module per command, and what the commands share.

`main.py` dispatches to one module per command (`print_command.py`, `record_command.py`, `serve_command.py`).
`request.py` sends the request of a command, `output.py` prints, with what `terminal.py` escapes, and
`recording_file.py` stores. `signals.py` ends a command, `errors.py` describes its failures.
"""
