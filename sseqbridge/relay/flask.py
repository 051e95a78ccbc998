"""Relays as Flask responses. Needs the extra `flask`. All code runs in the view's thread, without shared state."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import flask

from sseqbridge._exceptions import SSEError

from ._disconnect import disconnect_flag
from ._ending import Ending, OnEnd, RelayEnd, RequestEnd
from ._frames import relay
from ._options import SyncRelayOptions, check_synchronous, describe, relay_options
from ._response import error_response, event_stream_headers, read_refusal
from ._sync_frames import Frames
from ._upstream import Upstream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import RelayOptions

__all__ = ["register_error_handlers", "stream_response"]


def stream_response(
    stream: Any, *, headers: Mapping[str, str] | None = None, **options: Unpack[SyncRelayOptions]
) -> flask.Response:
    """Return a response that streams to the client; a disconnect aborts the upstream.

        @app.post("/chat")
        def chat():
            return stream_response(partial(request_sse, url, headers, data))

    `stream` and the options are those of `relay.frames`. `map`, `on_item`, and an iterable, run in the request's
    context, `on_end` in an app context of its own. `headers` are added to those of an event stream. If the upstream's
    status is not 200, the response is that of the option `refusal`.

    A function in place of the stream is called after the view has returned, before the functions of `after_request`,
    which see the status of a refusal; in the request's context, and not at all for HEAD. The application's error
    handlers are called with its exceptions.

    Raises UsageError for arguments that cannot work.
    """
    with Upstream(stream) as upstream:
        checked = relay_options("stream_response", SyncRelayOptions, options)
        check_synchronous(checked)
        merged = event_stream_headers(headers)
        environ = flask.request.environ if flask.has_request_context() else None
        frames = relay(upstream, checked, environ, ending=_FlaskEnding)
        response = _RelayResponse(frames, checked, headers, merged)
        if environ is not None:
            if flask.request.method == "HEAD":
                frames.discard()
            _follow(response, frames, environ)
        if not upstream.is_function:
            # A refusal is known already: the response has its status before the application's own functions see it.
            _open(response)
        return response


describe(stream_response, SyncRelayOptions)


def register_error_handlers(app: flask.Flask | flask.Blueprint) -> None:
    """Answer an error of the library in a view with a response for the client, instead of 500.

        register_error_handlers(app)

    `app` is the Flask application, or a Blueprint.

    504 for a time limit, 502 for each other error of an upstream, with the JSON object of a refusal; 404 for a log's
    StreamNotFoundError, 410 for EventsLostError, 503 or 500 for other errors of a log. A warning is logged. The
    upstream's StatusError is answered like a refusal. An error that the client's disconnect causes
    (RequestAbortedError) is not logged. CallbackError, which the application's own code causes, is raised on.

    Raises nothing itself.
    """
    app.register_error_handler(SSEError, _handle)


def _handle(error: SSEError) -> flask.Response:
    refusal = error_response(error)
    if refusal is None:
        raise error
    return flask.Response(refusal.body, refusal.status, refusal.headers)


class _FlaskEnding(Ending):
    """Calls `on_end` in an app context of its own, so that extensions release what it used, such as db.session."""

    def __init__(self, on_end: OnEnd | None) -> None:
        super().__init__(on_end)
        app: Any = flask.current_app
        self._app: flask.Flask | None = app._get_current_object() if flask.has_app_context() else None

    def run(self, on_end: OnEnd, end: RelayEnd) -> None:
        if self._app is None:
            super().run(on_end, end)
        else:
            with self._app.app_context():
                super().run(on_end, end)


class _RelayResponse(flask.Response):
    """A relay, or the response for its upstream's refusal."""

    def __init__(
        self,
        frames: Frames,
        options: RelayOptions,
        added: Mapping[str, str] | None,
        merged: Mapping[str, str],
    ) -> None:
        super().__init__(frames, 200, merged)
        self._frames = frames
        self._options = options
        self._added = added
        self._merged = merged

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        # For a response that Flask has not finalized.
        _begin(self, environ["REQUEST_METHOD"])
        return super().__call__(environ, start_response)


# Functions, not methods: Flask replaces the class of a response by the application's `response_class`.


def _begin(response: _RelayResponse, method: str) -> None:
    """Open the upstream, unless it is open, `early` is set, or there is nothing to send."""
    if method == "HEAD":
        response._frames.discard()
    elif not response._options["early"]:
        _open(response)


def _open(response: _RelayResponse) -> None:
    """Wait for the upstream's headers. Turn `response` into the one for a refusal if it is one."""
    frames, options = response._frames, response._options
    refused = frames.open_upstream()
    if refused is None or response.response is not frames:
        return
    environ = flask.request.environ if flask.has_request_context() else None
    try:
        refusal = read_refusal(refused, options["refusal"], response._added, disconnect_flag(environ, options["probe"]))
    except BaseException:
        frames.close()
        raise
    response.response = [refusal.body]
    response.status_code = refusal.status
    for name in response._merged:
        del response.headers[name]
    response.headers.update(refusal.headers)
    response.call_on_close(frames.close)


# Flask's end of a request. A view's response is dropped if code that runs after the view raises, or replaces it.

# The key of a WSGI environment under which the relays of its request are kept.
_RELAYS = "sseqbridge.flask_relays"


class _Relay:
    """The relay of a request. Refers weakly to its response, which refers to the request by the context variables."""

    def __init__(self, response: _RelayResponse, frames: Frames) -> None:
        self._response = weakref.ref(response)
        self._end = RequestEnd(frames)
        # Whether the response is the one that Flask sends.
        self._is_sent = False

    def finalize(self, response: flask.Response) -> flask.Response:
        """Open the upstream of the response that the view has returned, before the functions of after_request.

        Flask calls it again with the response of an error.
        """
        returned = self._response()
        if returned is not None and returned is response:
            try:
                _begin(returned, flask.request.method)
            except Exception as exc:
                app = flask.current_app
                return app.make_response(app.handle_user_exception(exc))
        return response

    def note_sent(self, response: flask.Response) -> None:
        """Note which response Flask sends."""
        self._is_sent = response is self._response()

    def end(self, error: BaseException | None) -> None:
        """Close the relay of a request that ends with an error, unless the relay is the response to the error."""
        self._end.end(closes=error is not None and not self._is_sent)


def _follow(response: _RelayResponse, frames: Frames, environ: dict[str, Any]) -> None:
    relay_of_request = _Relay(response, frames)
    environ.setdefault(_RELAYS, []).append(relay_of_request)
    flask.after_this_request(relay_of_request.finalize)


def _on_finished(sender: object, response: flask.Response, **_: object) -> None:
    for relay_of_request in flask.request.environ.get(_RELAYS, ()):
        relay_of_request.note_sent(response)


def _on_teardown(sender: object, exc: BaseException | None = None, **_: object) -> None:
    for relay_of_request in flask.request.environ.pop(_RELAYS, ()):
        relay_of_request.end(exc)


flask.request_finished.connect(_on_finished)
flask.request_tearing_down.connect(_on_teardown)
