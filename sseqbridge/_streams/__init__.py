"""The objects of users: streams, response tuples, merge, gather, tee, and the functions that open them.

`client.py` is SSEClient, whose requests request_sse and arequest_sse (`api.py`), request_jsonl (`jsonl.py`) and a Call
(`call.py`) are. `keywords.py` declares the options, `arguments.py` checks them, `pending.py` sends the request,
`hints.py` has the hints in errors. `EventStream` (`sync.py`) and `AsyncEventStream` (`aio.py`), over `stream.py`, wrap
an `ItemReader` (`reader.py`), which admits one consumer at a time (`claims.py`). Its `cursor.py` decodes
(`decoding.py`) the entries of a `Subscription` (`subscription.py`): of a request, a tee's reader, a log's reader or
asynchronous code (`plain_cursor.py`). `merger.py` is the common part of merge (`merge.py`) and gather (`gather.py`),
which open their streams by `openings.py`; `broadcaster.py` is that of a tee's readers (`tee.py`). `bridge.py` has the
process's bridges; `calls.py` has iterate, run and enter, which `async_code.py` runs on a bridge. `worker.py` runs an
iterable in a thread, `bridge_transport.py` carries requests of other HTTP clients.
"""
