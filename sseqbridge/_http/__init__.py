"""HTTP/1.1 over asyncio, with httpx's names and types. Knows no thread and no consumer.

`client.py` chooses the client of a request, `transport.py` is the connection pool (by `origin.py`), with httpx's
transport as fallback (`plain_transport.py`; `threaded.py` for mocket). `connection.py` is one HTTP/1.1 connection on a
`network_stream.py`, which `dial.py` connects (happy eyeballs); `outgoing.py` sends on it, `callback_exchange.py` reuses
it without a task. `h1_heads.py`, `h1_bodies.py`, `header_syntax.py` and `tls.py` are sans-IO. `request.py` checks and
builds requests (`direct_request.py` the usual ones, `forwarded.py` those of other clients), `redirects.py` decides
about redirects, `pauses.py` holds the calls of a gather back, `errors.py` maps the errors of transports.
`bounded_bodies.py` and `client_encodings.py` bound the bodies that a client of httpx reads itself. `unpacked.py` is for
type checkers alone. NTLM is in `connection_auth.py`, cookies are in `cookies.py`, proxies in `proxies.py`,
decompression in `content_encoding.py`, media types in `media_types.py`, URLs in `urls.py`, and HTTP/2 in `http2.py`.
"""
