"""One event loop, and the path of a stream's batches from it to a consumer.

Lowest first: batches, responses, sender, exchange, attempts, reconnecting; channel; loop_state, stream_task, bridge.

`bridge.py` has the loop's thread, `loop_state.py` the state that its streams share, `caller_loops.py` that of loops of
callers, `stats.py` the counters. `sender.py` sends a request with its redirects, on a client that `client_lease.py`
holds; `exchange.py` reads the response (`responses.py`), `batches.py` parses its body up to the end (`last_event.py`,
`last_block.py`), `stream_task.py` moves the entries into a `Channel` (`channel.py`). `retrying.py` and
`reconnecting.py` join several attempts, with `attempts.py`, `attempt_options.py` (new headers) and `resuming.py`
(another request); `reconnection_notice.py` is their entry. `callback_transfer.py` does the work of a stream's task on a
reused connection. `raw_exchange.py` sends a request of another client, on a reused connection with `raw_transfer.py`;
`transfer_task.py` is the base class of both tasks. `raw_writer.py` passes the bytes on, with the `idle_clock.py` for
its limit. `async_work.py` runs the caller's asynchronous code: `async_calls.py` a coroutine or context manager,
`iteration.py` an iterable. `scope.py` has cancellation scopes and cancel flags, `last_read.py` the record of iterables
that were cancelled, `memory.py` limits the bytes that are buffered.
"""
