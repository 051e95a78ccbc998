"""One event loop, and the path of a stream's batches from it to a consumer.

Lowest first: batches, responses, sender, exchange, attempts, reconnecting; channel; loop_state, stream_task, bridge.
"""
